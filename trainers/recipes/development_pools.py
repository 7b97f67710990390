"""What lists at scale are made of: corpora and queries that no test or development collection has, as files of
`tsarank data lists`, and the queries among many that a corpus answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.beir import read_corpus
from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.writing import write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.leakage_check import LeakageCheck
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever, SourceQuery, read_queries
from modeling_tsarank.trainers.data.query_files import write_queries
from modeling_tsarank.trainers.data.weak_text import words_of


@dataclass(frozen=True)
class PoolSource:
    """A corpus and queries for it.

    Attributes:
        name: Of the folder.
        passages: Files under the data folder, without their ending, whose passages are the corpus.
        queries: Files whose queries are taken; one with an ending is read as BEIR's, such as `queries.tsv.gz`.
        words: A passage is cut after so many.
        least_words, most_words: Of a query.
    """

    name: str
    passages: tuple[str, ...]
    queries: tuple[str, ...]
    words: int = 200
    least_words: int = 3
    most_words: int = 30

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise InputError(f"a pool's name is letters, digits, - and _, for it names a folder; got {self.name!r}")


def write_pool(
    source: PoolSource,
    folder: Path,
    passages: Iterable[str],
    queries: Mapping[str, Sequence[str]],
    check: LeakageCheck,
) -> dict[str, Any]:
    """Writes `corpus.jsonl` and `queries.jsonl`, without what the check finds.

    Args:
        source: The pool.
        folder: Where to write.
        passages: Texts of the corpus; copies become one.
        queries: Queries by the file they come from; of copies the first is taken.
        check: Against all test and development collections.

    Returns:
        Counts.
    """
    texts = list(dict.fromkeys(text for text in passages if text))
    leaks = check.passage_leaks([Document("", text) for text in texts])
    clean = [text for text, leak in zip(texts, leaks, strict=True) if not leak]
    write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": f"{source.name}-p{number}", "text": text} for number, text in enumerate(clean)),
    )
    unique: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, given in queries.items():
        for query in given:
            words = tuple(words_of(query))
            if source.least_words <= len(words) <= source.most_words:
                unique.setdefault(words, (query, name.rpartition("/")[2]))
    leaks = check.query_leaks([query for query, _ in unique.values()])
    kept = [one for one, leak in zip(unique.values(), leaks, strict=True) if not leak]
    counts = {"queries": len(kept), "queries kept out": len(unique) - len(kept)}
    write_queries(
        folder / "queries.jsonl",
        [SourceQuery(f"{source.name}-q{number}", query, kind) for number, (query, kind) in enumerate(kept)],
        counts,
    )
    return {"passages": len(clean), "passages kept out": len(texts) - len(clean), **counts}


def covered_queries(pool: Path, encoder: str, count: int, output: Path, cache: Path | None = None) -> dict[str, Any]:
    """Writes the queries of a pool whose best passage is nearest, which the corpus most likely answers.

    Most real queries have no answer in a small corpus, and lists without one teach little.

    Args:
        pool: Folder that `write_pool` filled.
        encoder: A bi-encoder of sentence-transformers.
        count: How many.
        output: The file to write.
        cache: Where indexes are kept, also for `tsarank data lists --index-cache`.

    Returns:
        Counts, and the lowest cosine taken.
    """
    documents = read_corpus(pool / "corpus.jsonl")
    queries = read_queries([pool / "queries.jsonl"])
    retriever = Retriever(documents, cache, _no_scorer)
    texts = {query.query_id: query.text for query in queries}
    run = retriever.run(FirstStage("dense", f"dense:{encoder}"), texts, 1)
    best = {query: max(scores.values()) for query, scores in run.items() if scores}
    order = sorted((one for one in queries if one.query_id in best), key=lambda one: -best[one.query_id])[:count]
    facts = {"read": len(queries), "taken": len(order), "lowest cosine": min(best[one.query_id] for one in order)}
    write_queries(output, order, facts)
    return facts


def _no_scorer(name: str) -> Any:
    raise InputError(f"a bi-encoder needs no reranker, got {name}")
