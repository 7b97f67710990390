"""Train a query-likelihood ranker on your judged queries: mine hard negatives with BM25, train LoRA, save a folder.

    pip install ".[eval,train]"
    python examples/train_ranker.py --output my-ranker

Eight queries are too few for a useful model; with a few hundred rows of your own the script is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modeling_tsarank import RankingSFTConfig, RankingSFTTrainer, load_ranker
from modeling_tsarank.eval.collections import load_collection_from_files
from modeling_tsarank.eval.first_stages import retrieve


HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m-instruct", help="a language model or a query-likelihood ranker")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--output", default="my-ranker")
args = parser.parse_args()

collection = load_collection_from_files(
    HERE / "collection.jsonl", HERE / "queries.jsonl", HERE / "qrels.tsv", name="mine"
)
rows = []
for query, found in retrieve(collection, "bm25", depth=20).items():
    relevant = [document for document, grade in collection.qrels[query].items() if grade > 0]
    negatives = [document for document in found if document not in relevant][:5]
    texts = {document: collection.documents[document].full_text for document in relevant + negatives}
    row = {"query": collection.queries[query]}
    row |= {"positives": [texts[one] for one in relevant], "negatives": [texts[one] for one in negatives]}
    rows.append(row)

config = RankingSFTConfig(
    args.output,
    max_steps=args.steps,
    per_device_train_batch_size=4,
    learning_rate=2e-4,
    trainable="lora",
    num_negatives=5,
    allow_fewer_negatives=True,
    score_form="mean_log_prob",
    temperature=0.1,
    logging_steps=1,
)
trainer = RankingSFTTrainer(args.model, config, rows)
trainer.train()
trainer.save_model()

ranker = load_ranker(args.output)
for row in ranker.rank(rows[0]["query"], rows[0]["positives"] + rows[0]["negatives"], return_documents=True):
    print(f"{row['score']:.3f}  {row['text'][:70]}")
