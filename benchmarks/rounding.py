"""What int8 weights or bfloat16 do to scores: against float32, and against themselves read in other ways.

    python benchmarks/rounding.py COLLECTION RUN [--dtype int8] [--model M] [--queries 20] [--depth 20]

COLLECTION is a folder in BEIR's layout, RUN a TREC run of it. For the first queries' best documents: Kendall's tau of
every query's order, and the root mean square of the differences of scores, beside the deviation of a query's scores.
Differences that all documents of a query share change no order and are left out. The other ways: small batches in the
opposite order; and, on the first query's documents and five queries, documents read once for all queries against every
pair read alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from modeling_tsarank import load_ranker
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.run_files import ranked, read_run


SMALL_BATCH = 700
SHARING_QUERIES = 5


def compare(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean tau of the rows, and the deviation of what the rows' scores `(queries, documents)` differ by."""
    difference = found - wanted
    difference -= difference.mean(1, keepdims=True)
    taus = [kendalltau(a, b).statistic for a, b in zip(found, wanted, strict=True)]
    return {
        "tau": round(float(np.mean(taus)), 3),
        "rms_difference": round(float(np.sqrt((difference**2).mean())), 4),
        "largest_difference": round(float(np.abs(difference).max()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="int8", choices=("int8", "bfloat16", "float32"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--depth", type=int, default=20)
    args = parser.parse_args()
    collection, run = load_collection(args.collection), read_run(args.run)
    pairs, shape = [], (min(args.queries, len(run)), args.depth)
    for query in sorted(run)[: args.queries]:
        best = ranked(run[query], args.depth)
        pairs += [(collection.queries[query], collection.documents[document].full_text) for document in best]
    exact = load_ranker(args.model, device="cpu", dtype="float32").predict(pairs).reshape(shape)
    rounded = load_ranker(args.model, device="cpu", dtype=args.dtype)
    scores = rounded.predict(pairs).reshape(shape)
    other = rounded.predict(pairs[::-1], batch_tokens=SMALL_BATCH)[::-1].reshape(shape)
    queries = [collection.queries[query] for query in sorted(run)[:SHARING_QUERIES]]
    crossed = [(query, document) for _, document in pairs[: args.depth] for query in queries]
    shared = rounded.predict(crossed).reshape(args.depth, -1).T
    alone = np.array([rounded.predict(pair) for pair in crossed]).reshape(args.depth, -1).T
    report = {
        "dtype": args.dtype,
        "pairs": len(pairs),
        "deviation_of_scores": round(float(exact.std(1).mean()), 4),
        "against_float32": compare(scores, exact),
        "against_other_batches": compare(other, scores),
        "documents_shared_against_alone": compare(shared, alone),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
