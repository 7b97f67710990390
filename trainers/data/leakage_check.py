"""Keeps the queries and passages of test collections out of queries, lists and labelled rows, and counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.types import Document
from modeling_tsarank.trainers.data.filters_leakage import Leakage
from modeling_tsarank.trainers.data.list_building import ListTask, SourceQuery
from modeling_tsarank.trainers.data.weak_text import TextView
from modeling_tsarank.trainers.data.weak_types import Pair


SIMILAR_QUERIES = 0.7
"""Jaccard similarity of two queries' stems from which on they are taken for one."""

_BATCH = 4096
_ROWS = 256


class LeakageCheck:
    """What stands in test collections, exactly or nearly; see the filter `leakage` for how texts are compared.

    Args:
        collections: As in that filter.
        options: Other options of that filter.

    Raises:
        InputError: a collection that cannot be read.
    """

    def __init__(self, collections: Sequence[str], **options: Any) -> None:
        self._step = Leakage(collections=tuple(collections), **{"similar_queries": SIMILAR_QUERIES, **options})
        self._found: Counter[str] = Counter()

    def __enter__(self) -> LeakageCheck:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step.close()

    def record(self) -> dict[str, Any]:
        """For a provenance record: `checked_against` (collection to its size) and `found` (reason to texts)."""
        return {**self._step.facts(), "found": dict(sorted(self._found.items()))}

    def query_leaks(self, texts: Sequence[str]) -> list[bool]:
        """Whether each query is one of a test collection."""
        return self._leaks([(text,) for text in texts], "query")

    def passage_leaks(self, passages: Sequence[Document]) -> list[bool]:
        """Whether each passage, with or without its title, is one of a test collection."""
        return self._leaks(
            [(one.full_text, one.text) if one.title else (one.full_text,) for one in passages], "document"
        )

    def _leaks(self, texts: Sequence[tuple[str, ...]], side: str) -> list[bool]:
        leaks = []
        for start in tqdm(range(0, len(texts), _BATCH), desc=f"checking each {side}", disable=None, leave=False):
            batch = texts[start : start + _BATCH]
            reasons = iter(self._step.find([TextView(text) for forms in batch for text in forms], side))
            for forms in batch:
                reason = next(filter(None, [next(reasons) for _ in forms]), None)
                self._found.update([] if reason is None else [reason])
                leaks.append(reason is not None)
        return leaks

    def clean_queries(self, queries: Sequence[SourceQuery]) -> list[SourceQuery]:
        """The queries that are in no test collection."""
        leaks = self.query_leaks([query.text for query in queries])
        return [query for query, leak in zip(queries, leaks, strict=True) if not leak]

    def clean_pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The weak pairs neither of whose texts is in a test collection."""
        queries = self.query_leaks([pair.query for pair in pairs])
        left = [pair for pair, leak in zip(pairs, queries, strict=True) if not leak]
        documents = self.passage_leaks([Document("", pair.document) for pair in left])
        return [pair for pair, leak in zip(left, documents, strict=True) if not leak]

    def clean_lists(self, tasks: Sequence[ListTask], documents: Mapping[str, Document]) -> list[ListTask]:
        """The lists without the passages of test collections; how many are left of each is for the caller to see."""
        names = list(dict.fromkeys(name for task in tasks for name in task.document_ids))
        leaks = dict(zip(names, self.passage_leaks([documents[name] for name in names]), strict=True))
        return [
            replace(task, document_ids=tuple(name for name in task.document_ids if not leaks[name])) for task in tasks
        ]

    def clean_rows(self, rows: Iterable[Mapping[str, Any]], minimum: int = 1) -> Iterator[dict[str, Any]]:
        """Canonical rows for fine-tuning without documents of test collections.

        A row whose query is one of theirs goes, and so does one without a positive or with fewer than `minimum`
        negatives left.
        """
        left = iter(rows)
        while batch := [dict(row) for row in islice(left, _ROWS)]:
            queries = self.query_leaks([row["query"] for row in batch])
            batch = [row for row, leak in zip(batch, queries, strict=True) if not leak]
            sides = [(row, side) for row in batch for side in ("positives", "negatives")]
            passages = [Document(d.get("title") or "", d["text"]) for row, side in sides for d in row[side]]
            leaks = iter(self.passage_leaks(passages))
            for row, side in sides:
                row[side] = [document for document in row[side] if not next(leaks)]
            yield from (row for row in batch if row["positives"] and len(row["negatives"]) >= minimum)
