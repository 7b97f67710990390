"""Distil a bi-encoder into a true/false ranker: no labels, only your passages and a teacher that scores them.

    pip install ".[eval,train,dense]"
    python examples/distil_bi_encoder.py --output my-ranker

Queries are the first sentences of passages; the teacher's scores of BM25's candidates are the targets of RankNet.
A student can only outperform a teacher that sees less than it does: use the best teacher that you can afford.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sentence_transformers import SentenceTransformer

from modeling_tsarank import RankingDistillConfig, RankingDistillTrainer, load_ranker
from modeling_tsarank.eval.bm25 import BM25Index


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--corpus", type=Path, default=Path(__file__).parent / "collection.jsonl")
parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2", help="any SentenceTransformer")
parser.add_argument("--model", default="smollm2-135m-instruct", help="the student: a language model or a ranker")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--output", default="my-ranker")
args = parser.parse_args()

passages = [json.loads(line) for line in args.corpus.read_text(encoding="utf-8").splitlines()]
texts = {passage["_id"]: passage["text"] for passage in passages}
queries = {key: text.partition(". ")[0] for key, text in texts.items()}
candidates = BM25Index.build(list(texts), list(texts.values())).search(queries, depth=8)

teacher = SentenceTransformer(args.teacher)
rows = []
for key, found in candidates.items():
    documents = [texts[one] for one in found if one != key]  # its own passage would be too easy
    if len(documents) < 2:
        continue
    scores = teacher.similarity(teacher.encode(queries[key]), teacher.encode(documents))[0]
    rows.append({"query": queries[key], "documents": documents, "teacher_scores": scores.tolist()})

config = RankingDistillConfig(
    args.output,
    max_steps=args.steps,
    per_device_train_batch_size=4,
    learning_rate=2e-4,
    trainable="lora",
    loss="ranknet",
    logging_steps=1,  # pairwise_accuracy: the fraction of document pairs ranked as by the teacher
)
student = load_ranker(args.model, family="true_false_logits", dtype="float32")
trainer = RankingDistillTrainer(student, config, rows)
trainer.train()
trainer.save_model()
print(f"{len(rows)} lists; load_ranker({args.output!r}) loads the student")
