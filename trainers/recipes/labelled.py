"""The labelled queries of a release: from files or weak pairs, with a development split."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.filters_text import Clean
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.data.weak_types import Pair
from modeling_tsarank.trainers.recipes.judged import Judged, Pool


@dataclass
class LabelledSource:
    """One source of labelled queries, as declared in `data.yaml`: files, or types of weak pairs.

    Attributes:
        name: Name in mixes, and of the development collection.
        files: Files in the folder `supervised` without suffix, in any layout of SFT data.
        dev_files: Files for development queries only; by default these are held out from `files` or pairs.
        types: Types of weak pairs whose queries are labelled with their own documents.
        origins: Patterns of the pairs' sources; all if empty.
        queries: Maximum number of training queries; 0 for all.
        dev: Number of development queries.
        dev_hard: Use only development queries for which BM25's first result is wrong. For sources whose queries share
            most words with their documents, which otherwise would not separate two rerankers; no fusion weight with
            BM25 may be tuned on such queries.
        query_words: Maximum words of a query; longer queries are left out.
        clean: Options of the filter `clean`, for files (weak pairs are already clean).
        mining: Options of `MiningOptions`; rows of a file with fewer than `count` negatives also get more of
            them.
    """

    name: str
    files: tuple[str, ...] = ()
    dev_files: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    queries: int = 0
    dev: int = 0
    dev_hard: bool = False
    query_words: int = 40
    clean: dict[str, Any] = field(default_factory=dict)
    mining: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.types):
            raise InputError(f"the source {self.name} needs either files or types of weak pairs")
        if self.dev_files and not self.files:
            raise InputError(f"the source {self.name} has dev_files without files")
        if min(self.queries, self.dev) < 0:
            raise InputError(f"the source {self.name}: queries and dev must be at least 0")
        self.cleaner = build_options(Clean, self.clean, f"the source {self.name}, clean")
        self.mining_options(0)

    def mining_options(self, seed: int) -> MiningOptions:
        """The mining options. Raises `InputError` for invalid ones."""
        return build_options(MiningOptions, {"seed": seed, **self.mining}, f"the source {self.name}, mining")

    def takes(self, pair: Pair) -> bool:
        """Whether a weak pair belongs to this source."""
        return pair.type in self.types and any(fnmatchcase(pair.source, one) for one in self.origins or ("*",))


def cleaned(cleaner: Clean, row: Judged) -> Judged:
    """The row with cleaned texts; texts that become empty are dropped."""

    def mended(query: str, document: str) -> tuple[str, str]:
        pair = cleaner.judge(Pair(query, document, "question_answer", row.query_id))
        return (query, document) if isinstance(pair, str) else (pair.query, pair.document)

    pairs = ((mended(row.query, text)[1], value) for text, value in row.pairs)
    return replace(row.with_pairs(pair for pair in pairs if pair[0]), query=mended(row.query, "")[0])


def usable(rows: Sequence[Judged], source: LabelledSource, lost: Counter[str]) -> list[Judged]:
    """The rows usable for training; counts of the others go into `lost`, by reason."""
    fitting = [row for row in rows if row.query and len(row.query.split()) <= source.query_words]
    kept = [row for row in fitting if row.positives]
    counts = {"query empty or too long": len(rows) - len(fitting), "no positive": len(fitting) - len(kept)}
    lost.update({reason: count for reason, count in counts.items() if count})
    return kept


def group_pairs(source: LabelledSource, pairs: Sequence[Pair], lost: Counter[str]) -> list[Judged]:
    """Weak pairs as queries; pairs whose queries have the same words become one query with several positives."""
    groups: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(tuple(words_of(pair.query)), []).append(pair)
    rows = []
    for number, group in enumerate(groups.values()):
        documents = tuple(dict.fromkeys(pair.document for pair in group))
        rows.append(Judged(f"{source.name}-{number}", group[0].query, documents, (1.0,) * len(documents)))
    return usable(rows, source, lost)


def choose_dev(
    rows: Sequence[Judged], pool: Pool, count: int, depth: int, hard: bool, generator: random.Random
) -> tuple[list[Judged], dict[str, dict[str, float]]]:
    """Development queries with their candidates: the first `count` in random order that can separate rankers.

    BM25's top `depth` must contain a positive, with `hard` not at the first rank. The selection uses no other
    model.
    """
    order = list(rows) if count else []
    generator.shuffle(order)
    chosen: list[Judged] = []
    run: dict[str, dict[str, float]] = {}
    for start in range(0, len(order), max(4 * count, 1)):
        batch = order[start : start + 4 * count]
        found = pool.candidates(batch, depth)
        for row in batch:
            names = ranked(found.get(row.query_id, {}))
            positives = {pool.ids[text] for text in row.positives}
            tells_apart = positives & set(names) and not (hard and names[0] in positives)
            if len(chosen) < count and tells_apart:
                chosen.append(row)
                run[row.query_id] = found[row.query_id]
        if len(chosen) >= count:
            break
    return chosen, run
