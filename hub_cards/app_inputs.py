"""Sources of the Space's documents: pasted text, an uploaded file, a list, or BM25 over the built-in collection."""

from __future__ import annotations

import io
import os
from numbers import Real
from pathlib import Path
from typing import Any

from modeling_tsarank.cache.state_files import NamedDocument, parse_documents, read_documents
from modeling_tsarank.eval.bm25 import BM25Index
from modeling_tsarank.files.reading import text_lines
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import clean_text


PASTED = "the pasted text"
UPLOADS = (".txt", ".text", ".jsonl", ".ndjson", ".gz")


def read_pasted(text: Any, limits: Limits) -> list[NamedDocument]:
    """Documents of a text field: one per line, or JSON lines if the first line starts with a brace.

    Raises `InputError` for invalid JSON (with the line number) and for more than `limits` allow.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("no documents were pasted; paste one per line, or JSON lines with the field 'text'")
    data = text.encode("utf-8", "replace")
    limits.check_size(len(data), f"{PASTED} has")
    documents = parse_documents(text_lines(io.BytesIO(data), PASTED, allow_nul=True), PASTED)
    limits.check_documents(documents)
    return documents


def read_upload(path: str | os.PathLike[str] | None, limits: Limits) -> list[NamedDocument]:
    """Documents of an uploaded `.txt` or `.jsonl` file. Raises `InputError` like `read_documents`, naming the file."""
    if not path:
        raise InputError("no file was uploaded; choose a .txt file with one document per line, or a .jsonl file")
    limits.check_size(os.path.getsize(path), f"{Path(path).name} has")
    suffix = Path(path).suffix.lower()
    if suffix not in UPLOADS:  # a small Parquet file may hold a large table
        raise InputError(f"{Path(path).name}: unknown file type {suffix!r}; expected .txt or .jsonl")
    try:
        documents = read_documents(str(path))
    except InputError as error:
        # Visitors know the file by its name, not by its path on the server.
        raise InputError(str(error).replace(str(path), Path(path).name).replace(", or --format", "")) from None
    limits.check_documents(documents)
    return documents


def named_documents(documents: Any, limits: Limits) -> list[NamedDocument]:
    """Documents of an API call, with ids from 1. Raises `InputError` unless it is a list of texts."""
    if not isinstance(documents, list | tuple):
        raise InputError(f"documents must be a list of texts, got {type(documents).__name__}")
    named = [NamedDocument(str(n), clean_text(text, f"document {n}")) for n, text in enumerate(documents, 1)]
    limits.check_documents(named)
    return named


class BuiltInCollection:
    """A small collection with a BM25 index.

    Args:
        documents: A `.jsonl` file with `_id`, `title` and `text`.
        queries: A `.jsonl` file of example queries with `_id` and `text`.
        cache_dir: Folder of the index; see `files.caches.cache_root`.

    Raises:
        InputError: A file is missing or malformed.
        ResourceError: bm25s or PyStemmer is not installed, or the cache cannot be written.
    """

    def __init__(self, documents: Path, queries: Path, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.documents = {document.id: document for document in read_documents(str(documents))}
        self.queries = [query.text for query in read_documents(str(queries))]
        texts = [document.text for document in self.documents.values()]
        self._index = BM25Index.build(list(self.documents), texts, cache_dir, show_progress=False)

    def __len__(self) -> int:
        return len(self.documents)

    def search(self, query: str, depth: int) -> list[NamedDocument]:
        """BM25's best documents, best first; fewer than `depth` if fewer share a word with the query.

        Raises `InputError` if no document does, or if `depth` is not a positive number.
        """
        if isinstance(depth, bool) or not isinstance(depth, Real) or depth != depth // 1 or depth < 1:
            raise InputError(f"the number of candidates must be a positive whole number, got {depth!r:.80}")
        found = self._index.search({"query": query}, int(depth), show_progress=False)["query"]
        if not found:
            raise InputError(
                f"BM25 finds none of the {len(self)} built-in documents: they share no word with the query; "
                "rephrase the query, or provide your own documents"
            )
        return [self.documents[document_id] for document_id in found]
