"""Long documents by their passages: nDCG@10, tokens and seconds of `--passages`.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/long_documents.py --output benchmarks/results/long_documents.json

Two collections, made from TSARANK_DATA:
planted  TREC-DL 2021's queries; each document is one judged passage (2 of the best grade and 4 that are not relevant)
         behind eight passages that were judged for other queries, about 500 tokens, and before one more
mediqa   MediQA 2019's questions with the answers of medical sites, at least three of more than 500 tokens

Each is ranked with every document cut to what the model takes (`cut`, which is what happens without --passages), and
by its passages. No pair is scored twice: `first`, `max`, `mean` and `top-3` have passages in common, and those that do
not overlap are mostly among those that do. `tokens` are those of all prompts of a row; `new` those that no row above
has had; `read` what the engine computed of them (the difference is what prefixes shared), in so many seconds of the
processor, so that other work on the machine counts little. The last part asks several queries about the same
documents: one after the other, in one call, and from cached states.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank import MemoryStore, load_ranker
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.files.reading import read_jsonl
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.scores.passages import PassageRanker


BEFORE, BEHIND, PLANTED_RELEVANT, PLANTED_OTHERS = 8, 1, 2, 4
LONG_ANSWER, MOST_TOKENS = 500, 7000
# passages, length and stride; `None` is the default
FIRST = ("first", None, None)
WAYS = {
    "planted": [(way, *size) for size in ((None, None), (250, 250)) for way in ("max", "mean", "top-3")],
    "mediqa": [(way, 250, 250) for way in ("max", "mean", "top-3")],
}


@dataclass
class Topic:
    """A query, its documents with their grades and, where an answer was planted, its place in each."""

    query: str
    documents: list[str]
    grades: list[int]
    answers: list[tuple[int, int]] = field(default_factory=list)


def planted(rows: list[dict[str, Any]], count: int) -> list[Topic]:
    """See the module."""
    generator = random.Random(0)
    topics = []
    for row in rows:
        by_grade = {grade: list({p["text"] for p in row["passages"] if p["grade"] == grade}) for grade in (0, 3)}
        if len(topics) == count or len(by_grade[3]) < PLANTED_RELEVANT or len(by_grade[0]) < PLANTED_OTHERS:
            continue
        others = [p["text"] for other in rows if other is not row for p in other["passages"]]
        topic = Topic(row["query"], [], [])
        for grade, number in ((3, PLANTED_RELEVANT), (0, PLANTED_OTHERS)):
            for text in generator.sample(sorted(by_grade[grade]), number):
                fillers = generator.sample(others, BEFORE + BEHIND)
                start = len(" ".join(fillers[:BEFORE])) + 1
                topic.documents.append(" ".join([*fillers[:BEFORE], text, *fillers[BEFORE:]]))
                topic.grades.append(grade)
                topic.answers.append((start, start + len(text)))
        order = generator.sample(range(len(topic.documents)), len(topic.documents))
        for name in ("documents", "grades", "answers"):
            setattr(topic, name, [getattr(topic, name)[i] for i in order])
        topics.append(topic)
    return topics


def mediqa(rows: list[dict[str, Any]], count: int, tokenizer: Any) -> list[Topic]:
    """See the module. A grade is the published one less one: 0 is not relevant."""
    topics = []
    for row in rows:
        texts, grades = [p["text"] for p in row["passages"]], [p["grade"] - 1 for p in row["passages"]]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        long = sum(length > LONG_ANSWER for length in lengths)
        if len(topics) < count and len(set(grades)) > 1 and long >= 3 and sum(lengths) <= MOST_TOKENS:
            topics.append(Topic(row["query"], texts, grades))
    return topics


def prompt_tokens(model: Any, pairs: list[tuple[str, str]]) -> int:
    return sum(len(pair.prompt) + len(pair.query) for pair in model.encoder.pairs(pairs))


class Remembering:
    """A model that scores no pair twice."""

    def __init__(self, model: Any) -> None:
        self.model, self.last_stats = model, {}
        self.scores: dict[tuple[str, str], float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, pairs: list[tuple[str, str]], **options: Any) -> Any:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.scores]
        found = self.model.predict(new, **options) if new else []
        self.scores.update(zip(new, map(float, found), strict=True))
        read = self.model.last_stats["tokens"] if new else 0
        self.last_stats = {"tokens": read, "new": prompt_tokens(self.model, new)}
        return np.array([self.scores[pair] for pair in pairs])


def measure(model: Any, topics: list[Topic], way: tuple[str, int | None, int | None] | None) -> dict[str, Any]:
    """One way on one collection."""
    run: dict[str, dict[str, float]] = {}
    tokens = new = read = found = planted_ = 0
    seconds = 0.0
    for number, topic in enumerate(topics):
        ranker = model if way is None else PassageRanker(model, *way)
        started = time.process_time()
        if way is None:
            scores = model.predict([(topic.query, text) for text in topic.documents])
            rows = [{"corpus_id": i, "score": float(score)} for i, score in enumerate(scores)]
            parts = topic.documents
        else:
            rows = ranker.rank(topic.query, topic.documents)
            parts = [text[part.start : part.end] for text in topic.documents for part in ranker._split(text)]
        seconds += time.process_time() - started
        read, new = read + model.last_stats["tokens"], new + model.last_stats["new"]
        tokens += prompt_tokens(model, [(topic.query, part) for part in parts])
        run[str(number)] = {str(row["corpus_id"]): row["score"] for row in rows}
        for row in rows if topic.answers and way is not None else []:
            if topic.grades[row["corpus_id"]] > 0:
                start, end = topic.answers[row["corpus_id"]]
                seen = min(row["passage"]["end"], end) - max(row["passage"]["start"], start)
                planted_, found = planted_ + 1, found + (seen >= (end - start) / 2)
    qrels = {str(n): {str(i): grade for i, grade in enumerate(topic.grades)} for n, topic in enumerate(topics)}
    result = compute_metrics(run, qrels)
    return {
        "passages": "cut" if way is None else way[0],
        "length": None if way is None else ranker.length,
        "stride": None if way is None else ranker.stride,
        "ndcg@10": round(100 * result.aggregate["ndcg@10"], 2),
        "answers found": f"{found} of {planted_}" if planted_ else None,
        "tokens": tokens,
        "new": new,
        "read": read,
        "seconds": round(seconds, 1),
        "per query": [round(values["ndcg@10"], 4) for values in result.per_query.values()],
    }


def several_queries(model: Any, topics: list[Topic]) -> list[dict[str, Any]]:
    """The first topic's documents, asked about by the queries of all."""
    ranker = PassageRanker(model, "max", 250, 250)
    texts = topics[0].documents
    queries = [topic.query for topic in topics]
    parts = [text[part.start : part.end] for text in texts for part in ranker._split(text)]
    results = []

    def add(name: str, read: int, started: float) -> None:
        seconds = round(time.process_time() - started, 1)
        results.append({"way": name, "queries": len(queries), "read": read, "seconds": seconds})

    def one_by_one() -> int:
        return sum((ranker.rank(query, texts), ranker.last_stats["tokens"])[1] for query in queries)

    started = time.process_time()
    add("one after the other", one_by_one(), started)
    started = time.process_time()
    model.predict([(query, part) for part in parts for query in queries])
    add("in one call", model.last_stats["tokens"], started)
    model.document_store = MemoryStore(None)
    started = time.process_time()
    add("one after the other, a store in memory", one_by_one(), started)
    started = time.process_time()
    add("again, all passages stored", one_by_one(), started)
    model.document_store = None
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="twolar-smollm2-135m-v2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--queries", type=int, nargs=2, default=[5, 4], help="of planted and mediqa")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder = Path(os.environ["TSARANK_DATA"]) / "marco"
    model = load_ranker(args.model, dtype=args.dtype)
    model.predict([("warm", "up")])
    once = Remembering(model)
    rows = {
        name: [row for _, row in read_jsonl(folder / f"{name}_graded.jsonl.gz")] for name in ("trecdl21", "mediqa2019")
    }
    collections = {
        "planted": planted(rows["trecdl21"], args.queries[0]),
        "mediqa": mediqa(rows["mediqa2019"], args.queries[1], model.tokenizer),
    }
    report: dict[str, Any] = {"model": args.model, "dtype": args.dtype}
    for name, topics in collections.items():
        documents = [text for topic in topics for text in topic.documents]
        ids = model.tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        facts = {"queries": len(topics), "documents": len(documents), "tokens": sum(map(len, ids))}
        results = []
        for way in [None, FIRST, *WAYS[name]]:
            results.append(measure(once, topics, way))
            sys.stderr.write(f"{name} {json.dumps(results[-1])}\n")
        report[name] = {**facts, "results": results}
        shown = [key for key in results[0] if key != "per query"]
        table = markdown_table(
            shown, [["" if row[key] is None else str(row[key]) for key in shown] for row in results]
        )
        sys.stdout.write(f"{name} {facts}\n{table}\n")
    report["several queries"] = several_queries(model, collections["planted"][:2])
    sys.stdout.write(json.dumps(report["several queries"], indent=1) + "\n")
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
