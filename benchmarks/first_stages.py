"""nDCG@10 and recall@100 of BM25 over every collection of a folder of BEIR collections, all judged queries.

python benchmarks/first_stages.py FOLDER [NAME …]
"""

from __future__ import annotations

import sys
from pathlib import Path

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.metrics import compute_metrics


def main(folder: str, *names: str) -> None:
    for name in names or sorted(path.name for path in Path(folder).iterdir() if path.is_dir()):
        collection = load_collection(str(Path(folder) / name))
        run = retrieve(collection, "bm25", depth=100)
        result = compute_metrics(run, collection.qrels, ("ndcg@10", "recall@100"))
        ndcg, recall = (100 * result.aggregate[measure] for measure in ("ndcg@10", "recall@100"))
        sys.stdout.write(f"{name}: {len(result.per_query)} queries, nDCG@10 {ndcg:.2f}, recall@100 {recall:.1f}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
