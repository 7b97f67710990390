"""First stages by name: BM25, dense, SPLADE, reciprocal rank fusion, or a run file.

`retrieve` searches a test collection; `build_index` indexes any corpus, for example for hard negative mining.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modeling_tsarank.eval.bm25 import BM25Index
from modeling_tsarank.eval.encoders import DenseIndex, SpladeIndex
from modeling_tsarank.eval.run_files import ranked, read_run
from modeling_tsarank.eval.types import Collection, Run
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.scores.fusion import RRF_K


logger = logging.getLogger(__name__)

STAGES = "bm25, dense, dense:MODEL, splade, splade:MODEL, rrf, rrf:STAGE+STAGE, or the path of a run file"

_RRF_DEFAULT = "bm25+dense"
_BUILDERS: dict[str, Callable[..., FirstStageIndex]] = {
    "bm25": BM25Index.build,
    "dense": DenseIndex.build,
    "splade": SpladeIndex.build,
}


class FirstStageIndex(Protocol):
    """The interface of all indexes."""

    def search(self, queries: Mapping[str, str], depth: int = 100, show_progress: bool | None = None) -> Run:
        """The best `depth` documents for every query (id to text), best first."""


class CollectionTexts(Sequence[str]):
    """The full texts of a collection's documents as a lazy sequence."""

    def __init__(self, collection: Collection) -> None:
        self._documents = collection.documents
        self.ids = list(collection.documents)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._documents[document_id].full_text for document_id in self.ids[index]]
        return self._documents[self.ids[index]].full_text


def build_index(
    stage: str,
    ids: Sequence[str],
    texts: Sequence[str],
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FirstStageIndex:
    """An index over a corpus, loaded from the cache if possible.

    Args:
        stage: `bm25`, `dense`, `dense:MODEL`, `splade` or `splade:MODEL`.
        ids: Document ids, unique.
        texts: Their texts.
        cache_dir: See `files.caches.cache_root`.
        **options: Keyword arguments of the index's `build`, such as `k1`, `batch_size` or `device`.

    Raises:
        InputError: No such stage, no documents, or duplicate ids.
        ModelError: A model cannot be loaded.
        ResourceError: A package is missing or the cache cannot be written.
    """
    kind, colon, model = stage.partition(":")
    if kind not in _BUILDERS or (colon and (kind == "bm25" or not model)):
        raise InputError(f"no index for the first stage {stage!r}; expected bm25, dense[:MODEL] or splade[:MODEL]")
    if colon:
        options = {**options, "model": model}
    return _BUILDERS[kind](ids, texts, cache_dir, **options)


def retrieve(
    collection: Collection,
    stage: str | os.PathLike[str],
    depth: int | None = 100,
    cache_dir: str | os.PathLike[str] | None = None,
    query_ids: Iterable[str] | None = None,
    run_format: str | None = None,
) -> Run:
    """The first-stage candidates of a collection's queries.

    Where the collection matches itself (ArguAna), a query's own document is left out and the next one moves up.

    Args:
        collection: The collection to search.
        stage: One of `STAGES`, or the name of a run in the collection's `runs/` folder.
        depth: Maximum number of candidates per query, 1 or more; None: all of a run file.
        cache_dir: See `files.caches.cache_root`.
        query_ids: The queries; all judged ones by default.
        run_format: For a run file, see `run_files.read_run`.

    Returns:
        Query id to document id to score, best first, in the order of `query_ids`. A query without results has an empty
        entry.

    Raises:
        InputError: No such stage, query or run file; a run that contains none of the queries, or a document that is
            not in the collection.
        ModelError: A model cannot be loaded.
        ResourceError: A package is missing or the cache cannot be written.
    """
    depth = None if depth is None else whole_number(depth, "the depth of a first stage")
    wanted = list(collection.judged_queries() if query_ids is None else query_ids)
    unknown = [query_id for query_id in wanted if query_id not in collection.queries]
    if unknown:
        raise InputError(
            f"{collection.name} has no query {unknown[0]!r} ({len(unknown)} of {len(wanted)} are unknown)"
        )
    name = os.fspath(stage)
    kind, _, rest = name.partition(":")
    if kind == "rrf":
        parts = (rest or _RRF_DEFAULT).split("+")
        runs = [retrieve(collection, part, depth, cache_dir, wanted, run_format) for part in parts]
        return reciprocal_rank_fusion(runs, depth)
    if kind in _BUILDERS:
        texts = CollectionTexts(collection)
        index = build_index(name, texts.ids, texts, cache_dir)
        # One more than requested: the query's own document may be among the results.
        fetched = (depth or len(texts)) + collection.self_match
        found = index.search({query_id: collection.queries[query_id] for query_id in wanted}, fetched)
    else:
        found = _given_run(collection, run_path(collection, name), wanted, run_format)
    run = {query_id: _candidates(collection, query_id, found.get(query_id, {}), depth) for query_id in wanted}
    _check_known(collection, run, name)
    return run


def reciprocal_rank_fusion(
    runs: Sequence[Mapping[str, Mapping[str, float]]], depth: int | None, k: float = RRF_K
) -> Run:
    """Fuses runs: the score of a document is the sum over runs of 1 / (k + rank), ranks from 1 in trec_eval's order.

    Reference: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank
    Learning Methods, SIGIR 2009.

    Args:
        runs: Runs to fuse; a query may be missing from some.
        depth: Maximum number of documents per query.
        k: Constant of the formula, above 0.

    Raises:
        InputError: Fewer than two runs, or k is not positive.
    """
    if len(runs) < 2:
        raise InputError(f"reciprocal rank fusion needs at least two runs, got {len(runs)}")
    if not k > 0:
        raise InputError(f"the k of reciprocal rank fusion must be positive, got {k}")
    fused: Run = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        scores: dict[str, float] = {}
        for run in runs:
            for rank, document_id in enumerate(ranked(run.get(query_id, {})), start=1):
                scores[document_id] = scores.get(document_id, 0.0) + 1.0 / (k + rank)
        fused[query_id] = {document_id: scores[document_id] for document_id in ranked(scores, depth)}
    return fused


def run_path(collection: Collection, name: str) -> Path:
    """The path of a run file. Raises `InputError` if there is none."""
    if name in collection.runs:
        return collection.runs[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    own = f" Runs of {collection.name}: {', '.join(collection.runs)}." if collection.runs else ""
    raise InputError(f"no first stage {name!r}, and no such file; expected {STAGES}.{own}")


def _given_run(collection: Collection, path: Path, query_ids: Sequence[str], run_format: str | None) -> Run:
    run = read_run(path, run_format)
    missing = [query_id for query_id in query_ids if query_id not in run]
    if len(missing) == len(query_ids):
        raise InputError(
            f"{path} contains none of the {len(query_ids)} queries of {collection.name}, only {next(iter(run))!r} …; "
            f"does the run belong to this collection?"
        )
    if missing:
        logger.warning("%s lacks %d of %d queries, such as %r", path, len(missing), len(query_ids), missing[0])
    return run


def _candidates(
    collection: Collection, query_id: str, scores: Mapping[str, float], depth: int | None
) -> dict[str, float]:
    own = query_id if collection.self_match else None
    kept = {document_id: score for document_id, score in scores.items() if document_id != own}
    return {document_id: kept[document_id] for document_id in ranked(kept, depth)}


def _check_known(collection: Collection, run: Run, name: str) -> None:
    """Raises for a candidate without a text, which can neither be reranked nor silently dropped."""
    for query_id, scores in run.items():
        for document_id in scores:
            if document_id not in collection.documents:
                raise InputError(
                    f"{name}: document {document_id!r}, a candidate of query {query_id!r}, is not in the corpus of "
                    f"{collection.name}; does the run belong to this collection?"
                )
