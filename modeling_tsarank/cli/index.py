"""`tsarank index`: encodes documents ahead of any query, so that ranking only costs the query's tokens."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.log_records import cuts_reported
from ..files.sizes import readable_size
from ..models.arguments import (
    add_document_arguments,
    add_model_arguments,
    documents_from_arguments,
    model_from_arguments,
)
from ..ranking_errors import ResourceError
from .command_line import add_command, size


logger = logging.getLogger(__name__)

_DETAILS = """\
formats:
  int8 (default) stores a value in one byte, with scales: about 11.9 KB a token for the embedded default model; float16
  and bfloat16 take two bytes; float32 takes four. The model's own dtype is lossless: scores are as without a store, in
  float32 up to rounding, in bfloat16 on a CPU bitwise. A store has one format; states of other models can be in the
  same folder and are never mixed up.
"""
_EXAMPLES = """\
  tsarank index --documents corpus.jsonl --store corpus-states
  tsarank index --documents corpus.jsonl --store corpus-states --store-dtype bfloat16 --max-disk 50GB
"""

# Documents that are tokenized and counted at a time.
_CHUNK = 1024


@dataclass(frozen=True)
class Cost:
    """The cost of indexing.

    Attributes:
        documents: different documents in the input.
        kept: those already in the store.
        tokens: to encode for the others.
        bytes: size of their states on disk.
        cut: documents that are truncated with any query.
    """

    documents: int
    kept: int
    tokens: int
    bytes: int
    cut: int = 0

    def describe(self, dtype: str, free: int) -> str:
        """One line for the user."""
        new = self.documents - self.kept
        line = f"{self.documents:,} documents, {self.kept:,} of them in the store"
        if new:
            line += (
                f"; {new:,} to encode, {self.tokens:,} tokens: {readable_size(self.bytes)} on disk as {dtype} "
                f"({readable_size(self.bytes / new)} a document, "
                f"{readable_size(self.bytes / max(self.tokens, 1))} a token), {readable_size(free)} free"
            )
        return f"{line}; {self.cut:,} are truncated to the model's length" if self.cut else line


def register(subparsers: Any) -> None:
    """Adds `index` to the command line."""
    parser = add_command(
        subparsers,
        "index",
        "cache documents' states, so that ranking them is many times faster",
        _EXAMPLES,
        run,
        common="store-dtype max-disk verify model dtype device max-length batch-tokens",
        details=_DETAILS,
    )
    add_document_arguments(parser)
    parser.add_argument("--store", required=True, metavar="FOLDER", help="folder of the cached states")
    parser.add_argument(
        "--store-dtype",
        choices=("int8", "bfloat16", "float16", "float32"),
        help="format of the states (default: the store's, int8 for a new one)",
    )
    parser.add_argument(
        "--max-disk",
        type=size,
        metavar="SIZE",
        help="limit of FOLDER, such as 20GB: the least recently used states are deleted first",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check all stored states first, and encode damaged documents again"
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode documents once and cache their states (keys and values): ranking them later only costs the query's
    tokens.

    FILE has the documents as for `tsarank rank`. FOLDER is created if missing; documents that are already in it are
    not encoded again, so an interrupted command continues where it stopped. The required disk space is reported
    before it starts. The prompt must be document-first: query likelihood, or a true/false ranker on a
    decoder-only model whose template has {document} before {query}.
    """
    texts = list(dict.fromkeys(document.text for document in documents_from_arguments(args)))
    from ..cache.folder_store import FolderStore

    new = [path for path in (Path(args.store), *Path(args.store).parents) if not path.exists()]
    with FolderStore(args.store, args.store_dtype, max_disk_bytes=args.max_disk) as store, _nothing_left(store, new):
        if args.verify:
            whole, damaged = store.verify()
            sys.stderr.write(f"tsarank: {whole:,} documents in the store are intact, {damaged:,} are damaged\n")
        model = model_from_arguments(args)
        cost, todo = estimate(model, texts, store)
        free = shutil.disk_usage(store.folder).free
        sys.stderr.write(f"tsarank: {cost.describe(store.dtype, free)}\n")
        check_room(cost, free, args.max_disk, store.disk_bytes(), store.folder)
        with cuts_reported():  # reported above
            read = model.index([text for text, _ in todo], store, batch_tokens=args.batch_tokens) if todo else 0
        size = store.disk_bytes()
    sys.stdout.write(f"{read:,} documents encoded; {args.store} takes {readable_size(size)}\n")
    return 0


@contextlib.contextmanager
def _nothing_left(store: Any, new: Sequence[Path]) -> Iterator[None]:
    """Deletes a store that an error left without documents, if it is `new`, and the new folders that it is in."""
    try:
        yield
    except BaseException:
        if new and not len(store):
            shutil.rmtree(store.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                for folder in new[1:]:
                    folder.rmdir()
        raise


def estimate(model: Any, texts: Sequence[str], store: Any) -> tuple[Cost, list[tuple[str, int]]]:
    """The cost of indexing these documents, and those missing from the store with their tokens.

    Raises `ModelError` for a model whose document states cannot be cached.
    """
    import torch

    from ..cache.state_bytes import encoded_bytes
    from ..engine.indexing import cache_prefixes
    from ..engine.prefix_reader import PrefixReader
    from ..engine.read_outs import TokenLogProbs
    from ..engine.state_blocks import Shape

    model.check_cacheable()
    todo: list[tuple[str, int]] = []
    cut = 0
    with torch.inference_mode():
        reader = PrefixReader(model.backbone, TokenLogProbs(), store, pad_id=model.pad_id)
        shapes = reader.shapes()
        reader.close()
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        prefixes, cut_here = cache_prefixes(model, part)
        cut += cut_here
        keys = [reader.key(*prefix) for prefix in prefixes]
        missing = set(store.missing(keys))
        # Without tokens before the query, there is nothing to cache.
        found = zip(part, prefixes, keys, strict=True)
        todo += [(text, len(ids)) for text, (ids, _), key in found if ids and key in missing]
    size = sum(
        encoded_bytes([Shape(s.layers, s.heads, tokens, s.key_dim, s.value_dim) for s in shapes], store.dtype)
        for _, tokens in todo
    )
    return Cost(len(texts), len(texts) - len(todo), sum(tokens for _, tokens in todo), size, cut), todo


def check_room(cost: Cost, free: int, max_disk: int | None, held: int, folder: Path) -> None:
    """Raises `ResourceError` before the work starts if the disk has too little space; warns if the limit has."""
    if max_disk is not None and cost.bytes and held + cost.bytes > max_disk:
        logger.warning(
            "the states take %s, more than --max-disk %s allows: the least recently used documents will be deleted",
            readable_size(cost.bytes),
            readable_size(max_disk),
        )
    wanted = cost.bytes if max_disk is None else min(cost.bytes, max(max_disk - held, 0))
    if wanted > free:
        raise ResourceError(
            f"the document states would take {readable_size(wanted)}, but {folder} has only {readable_size(free)} "
            "free; index fewer documents, or use another --store or a smaller --store-dtype"
        )
