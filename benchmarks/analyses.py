"""Two of the papers' analyses.

    python benchmarks/analyses.py perplexity DATASET MODEL... [--split S] [--pairs N] [--seed S] [--dtype D]
    python benchmarks/analyses.py agreement RUN RUN... [--depth N]

perplexity (TSARankLLM, Figure 5): exp(-mean log p of the query's tokens) given a document, of queries that belong to
it and of others drawn at random. The gap roughly tells how well a model can rank: a good one finds positive queries
likely (continual pre-training helps) and negative ones unlikely (fine-tuning helps).

agreement (TWOLAR, Table 1 and Eq. 3): the mean share of common documents among the top N of two first stages.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

import numpy as np

from modeling_tsarank import load_ranker
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import ranked, read_run
from modeling_tsarank.eval.types import Collection, Run
from modeling_tsarank.ranking_errors import TSARankError


TextPair = tuple[str, str]


def sample_query_pairs(collection: Collection, count: int, seed: int = 0) -> tuple[list[TextPair], list[TextPair]]:
    """Queries with a document relevant to them, and the same documents with a query to which they are not."""
    generator = random.Random(seed)
    query_ids = collection.judged_queries()
    relevant = [
        (query_id, document_id)
        for query_id in query_ids
        for document_id, grade in collection.qrels[query_id].items()
        if grade > 0 and document_id in collection.documents
    ]
    generator.shuffle(relevant)
    positive: list[TextPair] = []
    negative: list[TextPair] = []
    for query_id, document_id in relevant:
        drawn = generator.choices(query_ids, k=20)
        other = next((one for one in drawn if collection.qrels[one].get(document_id, 0) <= 0), None)
        if other is not None and len(positive) < count:
            text = collection.documents[document_id].full_text
            positive.append((collection.queries[query_id], text))
            negative.append((collection.queries[other], text))
    return positive, negative


def perplexity(model: str, pairs: Sequence[TextPair], dtype: str = "auto") -> float:
    """Geometric mean over pairs of a query-likelihood model's perplexity of the query."""
    ranker = load_ranker(model, dtype=dtype, family="query_likelihood", aggregation="mean")
    return float(np.exp(-np.asarray(ranker.predict(list(pairs)), dtype=np.float64).mean()))


def agreement(first: Run, second: Run, depth: int) -> float:
    """`1/|Q| * sum over q of |S_q^1 ∩ S_q^2| / N`, with S_q the top N documents and Q the queries of either run."""
    queries = first.keys() | second.keys()
    tops = [{query: set(ranked(scores, depth)) for query, scores in run.items()} for run in (first, second)]
    shared = sum(len(tops[0].get(query, set()) & tops[1].get(query, set())) for query in queries)
    return shared / depth / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="analysis", required=True)
    one = commands.add_parser("perplexity")
    one.add_argument("dataset")
    one.add_argument("models", nargs="+")
    one.add_argument("--split", default="test")
    one.add_argument("--pairs", type=int, default=5000)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--dtype", default="auto")
    two = commands.add_parser("agreement")
    two.add_argument("runs", nargs="+")
    two.add_argument("--depth", type=int, default=30)
    args = parser.parse_args()
    if args.analysis == "agreement":
        runs = [read_run(path) for path in args.runs]
        rows = [
            [path, *(f"{100 * agreement(first, second, args.depth):.1f}" for second in runs)]
            for path, first in zip(args.runs, runs, strict=True)
        ]
        sys.stdout.write(markdown_table(["% shared", *args.runs], rows))
        return
    positive, negative = sample_query_pairs(load_collection(args.dataset, args.split), args.pairs, args.seed)
    rows = []
    for model in args.models:
        values = perplexity(model, positive, args.dtype), perplexity(model, negative, args.dtype)
        rows.append([model, *(f"{value:.2f}" for value in (*values, values[1] - values[0]))])
    sys.stdout.write(markdown_table(["model", "positive queries", "negative queries", "difference"], rows))


if __name__ == "__main__":
    try:
        main()
    except TSARankError as error:
        raise SystemExit(str(error)) from None
