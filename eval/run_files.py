"""Run files and qrels in the formats that other tools read: TREC, MS MARCO, BEIR, rank_llm's and Pyserini's JSON."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from modeling_tsarank.eval.file_access import atomic_text, open_text, parse_json_object
from modeling_tsarank.eval.types import Document, Qrels, Run
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)


def ranked(scores: Mapping[str, float], depth: int | None = None) -> list[str]:
    """Document ids in trec_eval's order: score descending, ties by document id descending, scores as float32.

    Args:
        scores: Document id to score.
        depth: How many to return; all by default.
    """
    documents = sorted(scores, reverse=True)
    with np.errstate(over="ignore"):  # beyond float32 is infinite for trec_eval, too
        values = np.array([scores[document] for document in documents], dtype=np.float64).astype(np.float32)
    order = np.argsort(-values, kind="stable")
    return [documents[index] for index in order[:depth]]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run; the format is recognized by the file's first line, and `.gz` is unpacked.

    - TREC: six columns `query Q0 document rank score tag`; the score counts, the rank does not.
    - MS MARCO: three columns `query document rank`; the score is 1/rank.
    - JSON Lines or a JSON array of rank_llm or Pyserini: `{"query": {"text", "qid"}, "candidates": [{"docid",
      "score", "doc"}]}`, or the older `{"query": text, "hits": [{"qid", "docid", "rank", "score", "content"}]}`.
      Candidates without scores keep their order by the score 1/rank.

    A line that repeats another is kept once, with a warning.

    Raises:
        InputError: No such file, nothing in it, a line that fits no format (with its number), a score that is not
            a number, or two different scores for one document and query.
    """
    with open_text(path) as file:
        first_line = next((line for line in file if line.strip()), "")
        if not first_line:
            raise InputError(f"{path} is empty; a run was expected")
        file.seek(0)
        rows: Iterable[tuple[str, str, str, float]]
        if first_line.lstrip("\ufeff \t").startswith(("{", "[")):
            rows = chain.from_iterable(_candidate_rows(place, record) for place, record in _json_records(path, file))
        else:
            rows = _column_rows(path, file)
        run: Run = _collect(rows, "score")
    if not run:
        raise InputError(f"{path} names no query; a run was expected")
    return run


def write_run(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a TREC run file, whole or not at all: queries in the run's order, documents in trec_eval's.

    Scores are written with every digit, so reading gives back the same numbers.

    Raises:
        InputError: An id or the tag has white space or is empty, which six columns cannot hold, or a score is NaN.
    """
    _check_column(tag, "tag")
    with atomic_text(path) as file:
        for query_id, scores in run.items():
            _check_column(query_id, "query id")
            for rank, document_id in enumerate(ranked(scores), start=1):
                _check_column(document_id, "document id")
                score = float(scores[document_id])
                if math.isnan(score):
                    raise InputError(f"query {query_id!r}, document {document_id!r}: the score is not a number")
                file.write(f"{query_id} Q0 {document_id} {rank} {score!r} {tag}\n")


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
    """Reads relevance judgments: TREC's four columns, or BEIR's three with or without a header.

    A line that repeats another is kept once, with a warning.

    Raises:
        InputError: No such file, nothing in it, a line with another number of columns or a grade that is not whole
            (with the line's number), or two different grades for one document and query.
    """
    with open_text(path) as file:
        qrels = _collect(_qrel_rows(path, file), "relevance")
    if not qrels:
        raise InputError(f"{path} holds no judgment; qrels were expected")
    return qrels


def write_candidates_jsonl(
    path: str | os.PathLike[str],
    run: Mapping[str, Mapping[str, float]],
    queries: Mapping[str, str],
    documents: Mapping[str, Document],
    depth: int | None = None,
) -> None:
    """Writes a run with its texts as JSON Lines, the format that rank_llm reads and Pyserini's server answers in.

    Each line is `{"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {"title", "contents"}}]}`, the
    candidates in trec_eval's order; `contents` is the title and the text.

    Raises:
        InputError: A query or a document of the run has no text.
    """
    with atomic_text(path) as file:
        for query_id, scores in run.items():
            if query_id not in queries:
                raise InputError(f"query {query_id!r} of the run has no text among the {len(queries)} queries given")
            candidates = [
                {"docid": document_id, "score": float(scores[document_id]), "doc": _doc(documents, document_id)}
                for document_id in ranked(scores, depth)
            ]
            record = {"query": {"text": queries[query_id], "qid": query_id}, "candidates": candidates}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _doc(documents: Mapping[str, Document], document_id: str) -> dict[str, str]:
    try:
        document = documents[document_id]
    except KeyError:
        raise InputError(f"document {document_id!r} of the run has no text among the documents given") from None
    return {"title": document.title, "contents": document.full_text}


def _check_column(value: str, what: str) -> None:
    if not value or value.split() != [value]:
        raise InputError(f"{what} {value!r} is empty or has white space, which a TREC run file cannot hold")


def _collect(rows: Iterable[tuple[str, str, str, Any]], what: str) -> dict[str, dict[str, Any]]:
    """Rows (place, query, document, value) as a nested dictionary."""
    nested: dict[str, dict[str, Any]] = {}
    repeated, last_place = 0, ""
    for place, query_id, document_id, value in rows:
        values = nested.setdefault(query_id, {})
        if document_id not in values:
            values[document_id] = value
        elif values[document_id] == value:
            repeated, last_place = repeated + 1, place
        else:
            raise InputError(
                f"{place}: query {query_id!r}, document {document_id!r} already has the {what} "
                f"{values[document_id]}, now {value}; keep one"
            )
    if repeated:
        logger.warning("%s: %d repeated line(s) kept once, up to here", last_place, repeated)
    return nested


def _column_rows(path: str | os.PathLike[str], file: IO[str]) -> Iterator[tuple[str, str, str, float]]:
    for number, line in enumerate(file, start=1):
        columns = line.split()
        if not columns:
            continue
        place = f"{path}, line {number}"
        if len(columns) == 6:
            yield place, columns[0], columns[2], _score(columns[4], place)
        elif len(columns) == 3:
            yield place, columns[0], columns[1], _score_of_rank(columns[2], place)
        else:
            raise InputError(
                f"{place}: {len(columns)} columns, expected 6 (query Q0 document rank score tag) or 3 (query document "
                f"rank)"
            )


def _score(text: Any, place: str) -> float:
    try:
        score = float(text)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(text, bool) or math.isnan(score):
        raise InputError(f"{place}: the score {text!r} is not a number")
    return score


def _score_of_rank(text: Any, place: str) -> float:
    rank = int(text) if str(text).isascii() and str(text).isdigit() else 0
    if rank < 1:
        raise InputError(f"{place}: the rank {text!r} is not a whole number of 1 or more")
    return 1.0 / rank


def _json_records(path: str | os.PathLike[str], file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON array or of JSON Lines."""
    position, text = file.tell(), file.readline()
    while text and not text.strip():
        position, text = file.tell(), file.readline()
    file.seek(position)
    if text.lstrip().startswith("["):
        try:
            records = json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                raise InputError(f"{path}, record {number}: a JSON object was expected, found {record!r:.60}")
            yield f"{path}, record {number}", record
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{path}, line {number}", parse_json_object(line, f"{path}, line {number}")


def _candidate_rows(place: str, record: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    candidates = record.get("candidates", record.get("hits"))
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise InputError(f"{place}: expected a list of objects under 'candidates' (or 'hits')")
    query = record.get("query")
    record_id = query.get("qid") if isinstance(query, dict) else record.get("qid")
    for rank, candidate in enumerate(candidates, start=1):
        query_id = candidate.get("qid") if record_id is None else record_id
        document_id = candidate.get("docid")
        if query_id is None or document_id is None:
            missing = "query id ('qid')" if query_id is None else "'docid'"
            raise InputError(f"{place}: candidate {rank} has no {missing}")
        score = candidate.get("score")
        yield place, str(query_id), str(document_id), 1.0 / rank if score is None else _score(score, place)


def _qrel_rows(path: str | os.PathLike[str], file: IO[str]) -> Iterator[tuple[str, str, str, int]]:
    first = True
    for number, line in enumerate(file, start=1):
        text = line.strip()
        if not text:
            continue
        columns = text.split("\t") if text.count("\t") in (2, 3) else text.split()
        place = f"{path}, line {number}"
        if len(columns) not in (3, 4):
            raise InputError(
                f"{place}: {len(columns)} columns, expected TREC's 4 (query iteration document relevance) or "
                f"BEIR's 3 (query-id corpus-id score)"
            )
        is_header = first and len(columns) == 3 and columns[0].strip().lower() in _QRELS_HEADERS
        first = False
        if not is_header:
            yield place, columns[0].strip(), columns[-2].strip(), _grade(columns[-1], place)


_QRELS_HEADERS = {"query-id", "query_id", "qid", "query"}


def _grade(text: str, place: str) -> int:
    try:
        grade = float(text)
        if grade == int(grade):  # some published qrels write 1.0
            return int(grade)
    except (ValueError, OverflowError):
        pass
    raise InputError(f"{place}: the relevance {text!r} is not a whole number")


def tag_of(path: str | os.PathLike[str]) -> str:
    """A run tag made from a file's or model's name: its last part, white space as underscores."""
    return "_".join(Path(path).name.split()) or "run"
