"""Evaluate a reranker on your own documents, queries and judgments, and test the gain over BM25 for significance.

    pip install ".[eval]"
    python examples/evaluate_folder.py --output results

The command line does the same: tsarank evaluate --corpus C --queries Q --qrels R --top-k 20 --output results
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modeling_tsarank import load_ranker
from modeling_tsarank.eval.collections import load_collection_from_files
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.eval.significance import compare_values


HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--corpus", default=HERE / "collection.jsonl", help='JSON lines of "_id", "title" and "text"')
parser.add_argument("--queries", default=HERE / "queries.jsonl", help='JSON lines of "_id" and "text", or TSV')
parser.add_argument("--qrels", default=HERE / "qrels.tsv", help="BEIR's three columns or TREC's four")
parser.add_argument("--model", default="twolar-smollm2-135m-v2")
parser.add_argument("--output", type=Path, default=Path("results"))
args = parser.parse_args()

collection = load_collection_from_files(args.corpus, args.queries, args.qrels, name="mine")
source = ScorerSource(args.model, lambda: load_ranker(args.model))
options = EvaluationOptions(first_stage="bm25", top_k=20, measures=("ndcg@10", "mrr@10", "recall@20"))
result = evaluate_collection(source, collection, options, args.output)

for name, measured in result.systems.items():
    print(f"{name:12}", "  ".join(f"{measure} {value:.3f}" for measure, value in measured.aggregate.items()))

before, after = (result.systems[name].per_query for name in ("first_stage", "reranked"))
test = compare_values([before[query]["ndcg@10"] for query in before], [after[query]["ndcg@10"] for query in before])
print(f"gain {test.difference:+.3f}, 95% interval [{test.ci_low:+.3f}, {test.ci_high:+.3f}], p = {test.t_p:.2f}")
print(f"runs and per-query values: {result.folder}")
