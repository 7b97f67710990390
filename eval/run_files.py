"""Run files and qrels in common formats: TREC, MS MARCO, BEIR, and the JSON of rank_llm and Pyserini."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.eval.types import Qrels, Run
from modeling_tsarank.files.fields import as_id, field_value, optional_id, record_id, shown
from modeling_tsarank.files.reading import read_json_rows, read_lines
from modeling_tsarank.files.writing import whole_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.ranking_text import clean_query, document_text


logger = logging.getLogger(__name__)


def ranked(scores: Mapping[str, float], depth: int | None = None) -> list[str]:
    """Document ids in trec_eval's order: score descending, ties by document id descending, scores as float32.

    Args:
        scores: Document id to score.
        depth: Maximum number to return; all by default.
    """
    documents = sorted(scores, reverse=True)
    with np.errstate(over="ignore"):  # values beyond float32 are infinite for trec_eval, too
        values = np.array([scores[document] for document in documents], dtype=np.float64).astype(np.float32)
    order = np.argsort(-values, kind="stable")
    return [documents[index] for index in order[:depth]]


def read_run(path: str | os.PathLike[str], run_format: str | None = None) -> Run:
    """Reads a run; the format is detected from the file's first line, and compressed files are decompressed.

    - TREC: six columns `query Q0 document rank score tag`, separated by any ASCII white space as in trec_eval;
      the score is used, the rank is not.
    - Three columns `query document rank`, as MS MARCO's, if the whole numbers of every query are 1 to n in some
      order: the score is 1/rank. Three columns `query document score` if the scores are not whole numbers. Anything
      ambiguous raises unless `run_format` decides.
    - JSON Lines or a JSON array of rank_llm or Pyserini: `{"query": {"text", "qid"}, "candidates": [{"docid",
      "score", "doc"}]}`, or the older `{"query": text, "hits": [{"qid", "docid", "rank", "score", "content"}]}`.
      Candidates without scores get 1/rank in the order of their field `rank`, or else of the list.

    Duplicate lines are merged, with a warning.

    Args:
        path: The file.
        run_format: Meaning of the third of three columns: `ranks` or `scores`; detected by default.

    Raises:
        InputError: No such file, an empty file, a line in no known format (with its number), a score that is not
            a number, or two different scores for one document and query.
    """
    if run_format not in (None, *RUN_FORMATS):
        raise InputError(f"no run format {run_format!r}; there are {', '.join(RUN_FORMATS)}")
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{path} is empty; expected a run")
    run: Run
    if first[1].lstrip().startswith(("{", "[")):
        records = read_json_rows(path, allow_nan=True)
        run = _collect(chain.from_iterable(_candidate_rows(place, record) for place, record in records), "score")
    elif len(_columns(first[1])) == 3:
        run = _three_columns(path, run_format)
    else:
        run = _collect(_trec_rows(chain([first], lines)), "score")
    if not run:
        raise InputError(f"{path} contains no query; expected a run")
    return run


def write_run(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a TREC run file atomically: queries in the run's order, documents in trec_eval's.

    Scores are written with full precision and read back unchanged.

    Raises:
        InputError: An id or the tag is empty or contains white space, which a TREC run cannot represent, or a score
            is NaN.
    """
    _check_column(tag, "tag")
    with whole_text(path) as file:
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

    Columns are separated by any ASCII white space, as in trec_eval; under BEIR's header by tabs only.

    Duplicate lines are merged, with a warning.

    Raises:
        InputError: No such file, an empty file, a line with another number of columns or a grade that is not whole
            (with the line's number), or two different grades for one document and query.
    """
    qrels: Qrels = _collect(_qrel_rows(read_lines(path)), "relevance")
    if not qrels:
        raise InputError(f"{path} contains no judgment; expected qrels")
    return qrels


def _check_column(value: str, what: str) -> None:
    if _columns(value) != [value]:
        raise InputError(f"{what} {value!r} is empty or contains white space, which a TREC run file cannot represent")


def _collect(rows: Iterable[tuple[Any, ...]], what: str) -> dict[str, dict[str, Any]]:
    """Rows (place, query, document, value) as a nested dictionary."""
    nested: dict[str, dict[str, Any]] = {}
    repeated, last_place = 0, ""
    for place, query_id, document_id, value, *_ in rows:
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
        logger.warning("%s: merged %d duplicate line(s)", last_place, repeated)
    return nested


def _columns(line: str) -> list[str]:
    """A line's columns, split at ASCII white space only, like C's isspace."""
    return line.split() if line.isascii() and line.isprintable() else [c.decode() for c in line.encode().split()]


def _trec_rows(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str, float]]:
    for place, line in lines:
        columns = _columns(line)
        if len(columns) != 6:
            raise InputError(
                f"{place}: {len(columns)} columns, expected 6 (query Q0 document rank score tag), or on every line 3 "
                "(query document rank, or query document score)"
            )
        yield place, columns[0], columns[2], _score(columns[4], place)


def _three_columns(path: str | os.PathLike[str], run_format: str | None) -> Run:
    convert = _score_of_rank if run_format == "ranks" else _score

    def rows() -> Iterator[tuple[str, str, str, str]]:
        for place, line in read_lines(path):
            columns = _columns(line)
            if len(columns) != 3:
                raise InputError(f"{place}: {len(columns)} columns, expected 3 as on the first line")
            convert(columns[2], place)
            yield place, columns[0], columns[1], sys.intern(columns[2])

    texts = _collect(rows(), "value")
    if run_format is None:
        convert = _score_of_rank if _are_ranks(texts, path) else _score
    return {
        query_id: {document_id: convert(text, str(path)) for document_id, text in values.items()}
        for query_id, values in texts.items()
    }


def _are_ranks(texts: Mapping[str, Mapping[str, str]], path: str | os.PathLike[str]) -> bool:
    """Whether a third column contains ranks, or else scores. Raises `InputError` if ambiguous."""
    is_ranked, odd, fraction = False, None, None
    for query_id, values in texts.items():
        left = set(range(1, len(values) + 1))
        for document_id, text in values.items():
            if _rank(text) in left:
                left.remove(_rank(text))
                continue
            odd = odd or (query_id, document_id)
            if fraction is None and not (text.lstrip("+-").isdigit() or float(text).is_integer()):
                fraction = (query_id, document_id)
        is_ranked = is_ranked or (not left and len(values) > 1)
    if odd is None:
        return True
    if fraction is not None and not is_ranked:
        return False
    at = fraction or odd
    place = next(place for place, line in read_lines(path) if tuple(_columns(line)[:2]) == at)
    raise InputError(
        f"{place}: {texts[at[0]][at[1]]} is neither: ranks of a query are 1 to n, and scores are not whole numbers "
        "throughout; give --run-format ranks or --run-format scores"
    )


RUN_FORMATS = ("ranks", "scores")


def _rank(text: str) -> int:
    """A rank of 1 or more, 0 for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _score(text: Any, place: str, what: str = "score") -> float:
    try:
        # Python accepts more than C does: 1_0, and digits of other scripts.
        is_odd = isinstance(text, bool) or (isinstance(text, str) and ("_" in text or not text.isascii()))
        score = math.nan if is_odd else float(text)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if math.isnan(score):
        raise InputError(f"{place}: the {what} {shown(text)} is not a number")
    return score


def _score_of_rank(text: str, place: str) -> float:
    rank = _rank(text)
    if rank < 1:
        raise InputError(f"{place}: the rank {shown(text)} is not a whole number of 1 or more")
    return 1.0 / rank


def read_texts(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Queries and documents by id, from a JSON run of rank_llm or Pyserini that contains texts.

    Raises:
        InputError: See `read_run`, or a text is missing.
    """
    if not next(read_lines(path), ("", "{"))[1].lstrip().startswith(("{", "[")):
        raise InputError(f"{path} holds no texts; give --queries and --documents as well")
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for place, record in read_json_rows(path, allow_nan=True):
        for where, query_id, document_id, _, candidate in _candidate_rows(place, record):
            documents[document_id] = document_text(candidate.get("doc", candidate), where)
            query = record.get("query")
            queries[query_id] = clean_query(query.get("text") if isinstance(query, dict) else query, f"{place}: query")
    return queries, documents


def _candidate_rows(place: str, record: Any) -> Iterator[tuple[str, str, str, float, dict[str, Any]]]:
    if not isinstance(record, dict):
        raise InputError(f"{place}: expected a JSON object, found {shown(record)}")
    candidates = field_value(record, "candidates")
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise InputError(f"{place}: expected a list of objects under 'candidates' (or 'hits')")
    scored = sum(candidate.get("score") is not None for candidate in candidates)
    if 0 < scored < len(candidates):
        raise InputError(f"{place}: {len(candidates) - scored} of {len(candidates)} candidates have no score")
    if not scored and all(candidate.get("rank") is not None for candidate in candidates):
        candidates = sorted(candidates, key=lambda one: whole_number(one["rank"], f"{place}: a rank", 0))
    query = record.get("query")
    query_id = optional_id(query if isinstance(query, dict) else record, f"{place}: the query's id", "query_id")
    for rank, candidate in enumerate(candidates, start=1):
        where = f"{place}: candidate {rank}"
        own_id = query_id or record_id(candidate, where, "query_id_of_row")
        document_id = record_id(candidate, where)
        score = _score(candidate["score"], where) if scored else 1.0 / rank
        yield where, own_id, document_id, score, candidate


def _qrel_rows(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str, int]]:
    only_tabs = False
    for number, (place, line) in enumerate(lines):
        if number == 0 and _columns(line)[0].lower() in _QRELS_HEADERS and len(_columns(line)) == 3:
            only_tabs = line.count("\t") == 2  # BEIR's, whose ids may contain spaces
            continue
        columns = _tabbed(line, place) if only_tabs else _columns(line)
        if len(columns) != 3 and (only_tabs or len(columns) != 4):
            expected = "3 separated by tabs, as in the header" if only_tabs else "TREC's 4 or BEIR's 3"
            raise InputError(
                f"{place}: {len(columns)} columns, expected {expected} (query iteration document relevance, or "
                "query-id corpus-id score)"
            )
        for name in (columns[0], columns[-2]):
            as_id(name, f"{place}: the id")
        yield place, columns[0], columns[-2], _grade(columns[-1], place)


def _tabbed(line: str, place: str) -> list[str]:
    """The columns of BEIR's TSV, parsed with the `csv` module like BEIR's own loader, including quotation marks."""
    try:
        columns = next(csv.reader([line], delimiter="\t"))
    except csv.Error as error:
        raise InputError(f"{place}: {error}") from error
    for name in columns[:2]:
        if name != name.strip():
            raise InputError(f"{place}: the id {shown(name)} begins or ends with white space, which no corpus has")
    return columns


_QRELS_HEADERS = {"query-id", "query_id", "qid", "query"}


def _grade(text: str, place: str) -> int:
    grade = _score(text, place, "relevance")
    if not grade.is_integer():  # some published qrels contain 1.0
        raise InputError(f"{place}: the relevance {shown(text)} is not a whole number")
    return int(grade)


def tag_of(path: str | os.PathLike[str]) -> str:
    """A run tag from a file's or model's name: its last part, with underscores for white space."""
    return "_".join(Path(path).name.split()) or "run"
