"""Labelled queries of a release: read from files of differing layouts or made from weak pairs, with their pools.

A pool is every document of a source. BM25 over the pool finds the candidates of the development queries and the hard
negatives of the training queries, so that both come from the same distribution as a reranker's input.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.run_files import ranked, write_run
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.files.writing import write_jsonl, write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.filters_leakage import Leakage
from modeling_tsarank.trainers.data.filters_text import Clean
from modeling_tsarank.trainers.data.hard_negatives import MiningOptions, mine_negatives
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.data.weak_types import Pair
from modeling_tsarank.trainers.rows import positives_and_negatives, to_row
from modeling_tsarank.trainers.training_sources import read_records


BM25 = FirstStage("bm25", "bm25")
SUFFIX = ".jsonl.gz"
DEV_SPLIT, DEV_RUN = "dev", "candidates"


@dataclass
class LabelledSource:
    """One source of labelled queries, as `data.yaml` declares it: files, or types of weak pairs.

    Attributes:
        name: Name in mixes, and of the development collection.
        files: Files of the folder `supervised` without their ending; any layout of SFT data will do.
        dev_files: Files for the development queries alone; without them these are held out from `files` or pairs.
        types: Types of weak pairs whose queries are labelled with their own documents.
        origins: Patterns of the pairs' sources; all where empty.
        queries: Most training queries; 0 takes all.
        dev: Development queries.
        dev_hard: Take only development queries that BM25 answers wrongly at the first place. For sources whose queries
            share most words with their documents, and which could not tell two rerankers apart otherwise; no weight
            of BM25 may be tuned on such queries.
        query_words: Queries with more words are left out.
        clean: Options of the filter `clean`, for files (weak pairs are clean already).
        mining: Options of `MiningOptions`; `count` is also the number of negatives below which a row of a file gets
            more of them.
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
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-]+", self.name):
            raise InputError(f"a source's name is letters, digits, - and _, for it names a folder; got {self.name!r}")
        if bool(self.files) == bool(self.types):
            raise InputError(f"the source {self.name} needs either files or types of weak pairs")
        if self.dev_files and not self.files:
            raise InputError(f"the source {self.name} has dev_files without files")
        if min(self.queries, self.dev) < 0:
            raise InputError(f"the source {self.name}: queries and dev must be at least 0")
        self.mining_options(0)
        self.cleaner()

    def mining_options(self, seed: int) -> MiningOptions:
        """How negatives are mined. Raises `InputError` for options that do not go."""
        return build_options(MiningOptions, {"seed": seed, **self.mining}, f"the source {self.name}, mining")

    def cleaner(self) -> Clean:
        """The filter that mends the texts of files."""
        return build_options(Clean, self.clean, f"the source {self.name}, clean")

    def takes(self, pair: Pair) -> bool:
        """Whether a weak pair belongs to this source."""
        return pair.type in self.types and (
            not self.origins or any(fnmatchcase(pair.source, pattern) for pattern in self.origins)
        )


@dataclass(frozen=True)
class LabelledQuery:
    """A query with the texts of its positives and of its known negatives."""

    query_id: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()

    def row(self, source: str, words: int) -> dict[str, Any]:
        """The row of a training file (`rows.LAYOUTS`), documents cut after so many words."""
        positives = list(dict.fromkeys(_cut(text, words) for text in self.positives))
        negatives = list(dict.fromkeys(_cut(text, words) for text in self.negatives))
        return {
            "query_id": self.query_id,
            "query": self.query,
            "positives": positives,
            "negatives": [text for text in negatives if text not in positives],
            "source": source,
        }


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


# ---- reading ---------------------------------------------------------------------------------------


def reread(text: str) -> str:
    """UTF-8 that somebody read as Latin-1 (`cafÃ©`) read again; any other text as it is."""
    with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
        return text.encode("latin-1").decode("utf-8")
    return text


def read_files(
    source: LabelledSource, folder: Path, names: Sequence[str], limit: int, lost: Counter[str]
) -> list[LabelledQuery]:
    """The usable queries of files, cleaned; why others are not goes into `lost`.

    Raises:
        InputError: a file is missing, or a row is of no layout (with its line).
    """
    rows, cleaner = [], source.cleaner()
    for name in names:
        path = folder / f"{name}{SUFFIX}"
        if not path.is_file():
            raise InputError(f"the source {source.name} names {name}, but there is no {path}")
        for number, (place, record) in enumerate(read_records(path)):
            if limit and number >= limit:
                break
            try:
                read = positives_and_negatives(to_row(record, positives=True))
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            rows.append(_cleaned(cleaner, f"{name}-{number}", read))
    return _usable(rows, source, lost)


def _cleaned(cleaner: Clean, query_id: str, read: Mapping[str, Any]) -> LabelledQuery:
    def mended(query: str, document: str) -> tuple[str, str]:
        pair = cleaner.judge(Pair(reread(query), reread(document), "question_answer", query_id))
        return (query, document) if isinstance(pair, str) else (pair.query, pair.document)

    def texts(field_name: str) -> list[str]:
        joined = (f"{one['title'] or ''} {one['text']}".strip() for one in read[field_name])
        return [text for text in dict.fromkeys(mended(read["query"], one)[1] for one in joined) if text]

    positives = texts("positives")
    negatives = [text for text in texts("negatives") if text not in positives]
    return LabelledQuery(query_id, mended(read["query"], "")[0], tuple(positives), tuple(negatives))


def _usable(rows: Iterable[LabelledQuery], source: LabelledSource, lost: Counter[str]) -> list[LabelledQuery]:
    kept = []
    for row in rows:
        problem = _problem(row, source)
        if problem is None:
            kept.append(row)
        else:
            lost[problem] += 1
    return kept


def _problem(row: LabelledQuery, source: LabelledSource) -> str | None:
    if not row.query or len(row.query.split()) > source.query_words:
        return "query empty or too long"
    return None if row.positives else "no positive"


def group_pairs(source: LabelledSource, pairs: Iterable[Pair], lost: Counter[str]) -> list[LabelledQuery]:
    """Weak pairs as queries; the documents of pairs whose queries have the same words are positives of one query."""
    groups: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        if source.takes(pair):
            groups.setdefault(tuple(words_of(pair.query)), []).append(pair)
    rows = []
    for number, group in enumerate(groups.values()):
        documents = tuple(dict.fromkeys(pair.document for pair in group))
        rows.append(LabelledQuery(f"{source.name}-{number}", group[0].query, documents))
    return _usable(rows, source, lost)


# ---- leakage ---------------------------------------------------------------------------------------


class Gate:
    """Keeps texts of given collections out, and counts what it kept out, by way and collection.

    Args:
        name: What the counts are called.
        collections: As in the filter `leakage`.
        options: Options of that filter.
    """

    def __init__(self, name: str, collections: Sequence[str], **options: Any) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._step = Leakage(collections=tuple(collections), **options)

    def facts(self) -> dict[str, Any]:
        """What was checked against, and what was found."""
        return {**self._step.facts(), "found": dict(sorted(self.counts.items()))}

    def keeps(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether each pair is free of the collections' texts."""
        found = []
        for start in tqdm(range(0, len(pairs), 4096), desc=f"checking against {self.name}", disable=None, leave=False):
            # Copies: a pair keeps the keys of its texts for as long as it lives.
            copies = [Pair(**pair.row()) for pair in pairs[start : start + 4096]]
            for outcome in self._step.apply(copies):
                found.append(isinstance(outcome, Pair))
                if isinstance(outcome, str):
                    self.counts[outcome] += 1
        return found

    def pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that are free of them."""
        return [pair for pair, good in zip(pairs, self.keeps(pairs), strict=True) if good]

    def rows(self, rows: Sequence[LabelledQuery]) -> list[LabelledQuery]:
        """The rows without documents that stand there; one whose query does, or all of whose positives do, goes."""
        flat = [
            (number, positive, text)
            for number, row in enumerate(rows)
            for positive, texts in ((True, row.positives), (False, row.negatives))
            for text in texts
        ]
        keeps = self.keeps([Pair(rows[number].query, text, "question_answer", "") for number, _, text in flat])
        left: list[tuple[list[str], list[str]]] = [([], []) for _ in rows]
        for (number, positive, text), good in zip(flat, keeps, strict=True):
            if good:
                left[number][0 if positive else 1].append(text)
        return [
            replace(row, positives=tuple(positives), negatives=tuple(negatives))
            for row, (positives, negatives) in zip(rows, left, strict=True)
            if positives
        ]

    def close(self) -> None:
        """Lets go of the filter's file."""
        self._step.close()


# ---- pools -----------------------------------------------------------------------------------------


class Pool:
    """All documents of a source under ids, with BM25 over them.

    Args:
        name: Prefix of the ids.
        texts: Documents; copies become one.
        cache_dir: Of the index.
    """

    def __init__(self, name: str, texts: Iterable[str], cache_dir: Path) -> None:
        self.name = name
        self.ids = {text: f"{name}-d{number}" for number, text in enumerate(dict.fromkeys(texts))}
        self.documents = {identifier: Document("", text) for text, identifier in self.ids.items()}
        self._retriever = Retriever(self.documents, cache_dir, _no_scorer)

    def collection(self, rows: Sequence[LabelledQuery]) -> Collection:
        """The rows over this pool: positives have grade 1, known negatives 0."""
        qrels = {}
        for row in rows:
            grades = {self.ids[text]: 0 for text in row.negatives if text in self.ids}
            qrels[row.query_id] = grades | {self.ids[text]: 1 for text in row.positives if text in self.ids}
        return Collection(self.name, self.documents, {row.query_id: row.query for row in rows}, qrels)

    def candidates(self, rows: Sequence[LabelledQuery], depth: int) -> dict[str, dict[str, float]]:
        """BM25's best documents of every row's query."""
        return self._retriever.run(BM25, {row.query_id: row.query for row in rows}, depth)

    def with_negatives(
        self, rows: Sequence[LabelledQuery], options: MiningOptions, lost: Counter[str]
    ) -> list[LabelledQuery]:
        """The rows, those with fewer than `options.count` negatives filled up with mined ones.

        A row that has none in the end is left out and counted in `lost`.
        """
        short = [row for row in rows if len(row.negatives) < options.count]
        mined: dict[str, list[str]] = {}
        if short:
            found, counts = mine_negatives(self.collection(short), BM25, self._retriever, options)
            mined = {one["query_id"]: [document["text"] for document in one["negatives"]] for one in found}
            lost.update({f"mining: {reason}": number for reason, number in counts.lost.items()})
        filled = []
        for row in rows:
            own = {*row.positives, *row.negatives}
            more = [text for text in mined.get(row.query_id, []) if text not in own]
            negatives = (*row.negatives, *more[: max(options.count - len(row.negatives), 0)])
            if negatives:
                filled.append(replace(row, negatives=negatives))
        return filled


def _no_scorer(name: str) -> Any:
    raise InputError(f"mining by BM25 needs no reranker, got {name}")


def write_collection(
    folder: Path,
    pool: Pool,
    queries: Mapping[str, str],
    judged: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
) -> None:
    """A development collection in BEIR's layout, whose corpus are the candidates and the judged passages.

    Args:
        folder: Where to write.
        pool: Of the passages.
        queries: Id to text.
        judged: Query id to passage to grade.
        run: Query id to passage id to BM25's score.
    """
    needed = {name for scores in run.values() for name in scores}
    needed |= {pool.ids[text] for grades in judged.values() for text in grades}
    documents = ({"_id": name, "text": one.text} for name, one in pool.documents.items() if name in needed)
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries.items()))
    lines = [f"{name}\t{pool.ids[text]}\t{grade}\n" for name, one in judged.items() for text, grade in one.items()]
    write_text(folder / "qrels" / f"{DEV_SPLIT}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    write_run(folder / "runs" / f"{DEV_RUN}.trec", run, "bm25")


def choose_dev(
    rows: Sequence[LabelledQuery], pool: Pool, count: int, depth: int, hard: bool, generator: random.Random
) -> tuple[list[LabelledQuery], dict[str, dict[str, float]]]:
    """Development queries with their candidates: the first `count` in random order that can tell rankers apart.

    BM25's top `depth` must hold a positive, with `hard` at another place than the first. The choice looks at no other
    model.
    """
    order = list(rows) if count else []
    generator.shuffle(order)
    chosen: list[LabelledQuery] = []
    run: dict[str, dict[str, float]] = {}
    for start in range(0, len(order), max(4 * count, 1)):
        batch = order[start : start + 4 * count]
        found = pool.candidates(batch, depth)
        for row in batch:
            names = ranked(found.get(row.query_id, {}))
            positives = {pool.ids[text] for text in row.positives}
            if len(chosen) < count and _tells_apart(names, positives, hard):
                chosen.append(row)
                run[row.query_id] = found[row.query_id]
        if len(chosen) >= count:
            break
    return chosen, run


def _tells_apart(names: Sequence[str], positives: set[str], hard: bool) -> bool:
    """Whether candidates, best first, make a development query."""
    return bool(positives & set(names)) and not (hard and names[0] in positives)
