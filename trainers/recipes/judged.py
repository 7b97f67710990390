"""Shared by both data preparations: queries with judged passages from raw files, and pools of passages.

A pool contains all passages of a source. BM25 over the pool gives the candidates of the development queries and the
hard negatives of the training queries, so that both have the distribution of a reranker's input.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.run_files import write_run
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.files.fields import field_text, record_text, shown, without_nulls
from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.files.writing import write_json, write_jsonl, write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
from modeling_tsarank.trainers.data.hard_negatives import mine_negatives
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever
from modeling_tsarank.trainers.data.provenance import COUNTS, describe_file, package_versions
from modeling_tsarank.trainers.rows import read_document, read_documents, read_list, read_numbers, to_row
from modeling_tsarank.trainers.training_sources import read_records


DATA_VARIABLE = "$TSARANK_DATA"
BM25 = FirstStage("bm25", "bm25")
SUFFIX = ".jsonl.gz"
DEV_SPLIT, DEV_RUN = "dev", "candidates"
PACKAGES = ("bm25s", "datasketch", "numpy", "PyStemmer", "xxhash")


@dataclass(frozen=True)
class Judged:
    """A query with judged passages.

    Attributes:
        query_id: Unique in its source.
        query: The text; empty for a passage without a query.
        texts: Distinct passages.
        values: A grade, a label or a teacher's score of each passage.
        target: Field of the values in a training row: `labels` or `teacher_scores`.
    """

    query_id: str
    query: str
    texts: tuple[str, ...]
    values: tuple[float, ...]
    target: str = "labels"

    @property
    def positives(self) -> list[str]:
        """Passages with a value above 0."""
        return [text for text, value in self.pairs if value > 0]

    @property
    def negatives(self) -> list[str]:
        """The other passages."""
        return [text for text, value in self.pairs if value <= 0]

    @property
    def pairs(self) -> list[tuple[str, float]]:
        """Passages with their values."""
        return list(zip(self.texts, self.values, strict=True))

    def with_pairs(self, pairs: Iterable[tuple[str, float]]) -> Judged:
        """The same query with these passages; a repeated passage is merged, with its highest value."""
        best: dict[str, float] = {}
        for text, value in pairs:
            best[text] = max(value, best.get(text, value))
        return replace(self, texts=tuple(best), values=tuple(best.values()))


# ---- plans and files -------------------------------------------------------------------------------


def read_plan(path: Path, data: Path) -> dict[str, Any]:
    """The options in a YAML file, with `$TSARANK_DATA` replaced by `data`. Raises `InputError` for another file."""
    content = parse_yaml(read_text(path).replace(DATA_VARIABLE, str(data)), str(path))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: expected options by name")
    return {name: value for name, value in content.items() if not name.startswith("x-")}


def check_names(what: str, names: Sequence[Any]) -> None:
    """Raises `InputError` for names that are not unique or not valid as file or folder names."""
    wrong = next((name for name in names if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name)), None)
    if wrong is not None:
        raise InputError(f"{what}: names may have letters, digits, - and _, as they name folders; got {wrong!r}")
    if len(set(names)) < len(names):
        raise InputError(f"{what} need different names, got {', '.join(names)}")


def reread(text: str) -> str:
    """Repairs UTF-8 text that was decoded as Latin-1 (`cafÃ©`); any other text is returned unchanged."""
    with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
        return text.encode("latin-1").decode("utf-8")
    return text


@dataclass
class Raw:
    """The raw files of a folder, at most `limit` rows of each (0 for all), and a record of the files read."""

    data: Path
    limit: int
    inputs: dict[str, Any]

    def records(self, name: str) -> Iterator[tuple[str, Any]]:
        """Place and record of each row of a file. Raises `InputError` if it does not exist or cannot be read."""
        path = self.data / f"{name}{SUFFIX}"
        if not path.is_file():
            raise InputError(f"there is no {path}")
        self.inputs[f"{name}{SUFFIX}"] = describe_file(path)
        yield from islice(read_records(path), self.limit or None)


def read_row(record: Any, place: str, query_id: str) -> Judged:
    """A raw row: passages with score, grade or label, candidates, a single passage, or any layout of fine-tuning data.

    Raises:
        InputError: it is none of these, or a text or number in it is invalid; names its place.
    """
    record, target = checked_record(record, place), "labels"
    try:
        if "passages" in record:
            pairs, target = _passages(read_list(record, "passages"))
        elif "candidates" in record:
            pairs = [(str(one["text"]), 0.0) for one in read_documents(record, "candidates")]
        elif "text" in record:
            pairs = [(record_text(record, "the row"), 0.0)]
        else:
            row = to_row(record, positives=True)
            texts = (f"{one['title'] or ''} {one['text']}".strip() for one in row["documents"])
            pairs = list(zip(texts, row["labels"], strict=True))
        query = field_text(record, "query", "the row") or ""
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return Judged(query_id, reread(query), (), (), target).with_pairs((reread(text), value) for text, value in pairs)


def checked_record(record: Any, place: str) -> dict[str, Any]:
    """The non-null fields of a raw row. Raises `InputError` if it is not a row."""
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: expected a row with named fields, found {shown(record)}")
    return without_nulls(record)


def _passages(given: Sequence[Any]) -> tuple[list[tuple[str, float]], str]:
    """Texts and values of passages, and the field of the values in a training row."""
    rows = [checked_record(one, f"passages[{number}]") for number, one in enumerate(given)]
    name = next((one for one in ("score", "grade", "label") if rows and one in rows[0]), "")
    if rows and not name:
        raise InputError("passages have neither score, grade nor label")
    values = read_numbers({name: [row.get(name) for row in rows]}, name)
    texts = [str(read_document(row, f"passages[{number}]")["text"]) for number, row in enumerate(rows)]
    return list(zip(texts, values, strict=True)), "teacher_scores" if name == "score" else "labels"


def clean_judged(rows: Sequence[Judged], check: LeakageCheck, lost: Counter[str]) -> list[Judged]:
    """The rows without texts of test or development collections: rows with such queries, and passages, are removed."""
    clean = check.clean_queries(rows)
    kept = set(check.clean_texts(list(dict.fromkeys(text for row in clean for text in row.texts))))
    lost["query of a test or development collection"] += len(rows) - len(clean)
    lost["passages of a test or development collection"] += sum(
        text not in kept for row in clean for text in row.texts
    )
    return [row.with_pairs(pair for pair in row.pairs if pair[0] in kept) for row in clean]


def write_counts(output: Path, report: dict[str, Any], *folders: str) -> dict[str, Any]:
    """Writes `counts.json`: the report plus rows and fingerprint of each `.jsonl` file in the output's `folders`."""
    report["files"] = {}
    for path in (path for folder in folders for path in sorted((output / folder).rglob("*.jsonl"))):
        with path.open("rb") as file:
            rows = sum(1 for _ in file)
        report["files"][str(path.relative_to(output))] = {"rows": rows, "sha256": hash_file(path)}
    report["versions"] = package_versions(PACKAGES)
    write_json(output / COUNTS, report)
    return report


def write_corpus(folder: Path, prefix: str, texts: Sequence[str], check: LeakageCheck | None = None) -> int:
    """Writes `corpus.jsonl` without passages that the check finds, ids from `prefix`; returns how many are left."""
    left = texts if check is None else check.clean_texts(texts)
    write_jsonl(folder / "corpus.jsonl", ({"_id": f"{prefix}{n}", "text": text} for n, text in enumerate(left)))
    return len(left)


# ---- pools -----------------------------------------------------------------------------------------


class Pool:
    """All passages of a source with ids, and a BM25 index over them.

    Args:
        name: Prefix of the ids.
        texts: Passages; duplicates are merged.
        cache_dir: Folder of the index.
    """

    def __init__(self, name: str, texts: Iterable[str], cache_dir: Path) -> None:
        self.name = name
        self.ids = {text: f"{name}-d{number}" for number, text in enumerate(dict.fromkeys(texts))}
        self.documents = {identifier: Document("", text) for text, identifier in self.ids.items()}
        self._retriever = Retriever(self.documents, cache_dir)

    def candidates(self, rows: Sequence[Judged], depth: int) -> dict[str, dict[str, float]]:
        """BM25's best passages for every row's query."""
        return self._retriever.run(BM25, {row.query_id: row.query for row in rows}, depth)

    def with_negatives(self, rows: Sequence[Judged], options: MiningOptions, lost: Counter[str]) -> list[Judged]:
        """The rows with values of 1 and 0; rows with fewer than `options.count` negatives get mined ones.

        Rows that still have none are left out and counted in `lost`.
        """
        short = [row for row in rows if len(row.negatives) < options.count]
        mined: dict[str, list[str]] = {}
        if short:
            qrels = {
                row.query_id: {self.ids[text]: int(value > 0) for text, value in row.pairs if text in self.ids}
                for row in short
            }
            collection = Collection(self.name, self.documents, {row.query_id: row.query for row in short}, qrels)
            found, counts = mine_negatives(collection, BM25, self._retriever, options)
            mined = {one["query_id"]: [document["text"] for document in one["negatives"]] for one in found}
            lost.update({f"mining: {reason}": number for reason, number in counts.lost.items()})
        filled = []
        for row in rows:
            more = [text for text in mined.get(row.query_id, []) if text not in row.texts]
            negatives = [*row.negatives, *more[: max(options.count - len(row.negatives), 0)]]
            if negatives:
                filled.append(
                    row.with_pairs([(one, 1.0) for one in row.positives] + [(one, 0.0) for one in negatives])
                )
        return filled

    def write_collection(
        self,
        folder: Path,
        queries: Mapping[str, str],
        judged: Mapping[str, Mapping[str, int]],
        run: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Writes a development collection in BEIR's layout, with the candidates and the judged passages as corpus.

        Args:
            folder: Output folder.
            queries: Query id to text.
            judged: Query id to passage to grade.
            run: Query id to passage id to BM25's score.
        """
        needed = {name for scores in run.values() for name in scores}
        needed |= {self.ids[text] for grades in judged.values() for text in grades}
        documents = ({"_id": name, "text": one.text} for name, one in self.documents.items() if name in needed)
        write_jsonl(folder / "corpus.jsonl", documents)
        write_jsonl(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries.items()))
        lines = [f"{name}\t{self.ids[text]}\t{grade}\n" for name, one in judged.items() for text, grade in one.items()]
        write_text(folder / "qrels" / f"{DEV_SPLIT}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        write_run(folder / "runs" / f"{DEV_RUN}.trec", run, "bm25")
