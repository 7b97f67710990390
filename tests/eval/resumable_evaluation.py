"""One evaluation in a process of its own, for tests that kill it or start it twice beside itself.

python resumable_evaluation.py COLLECTION OUTPUT (slow:SECONDS | lists:SECONDS | MODEL_FOLDER)
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.rankers.protocols import Scorer


class SlowScorer:
    """Scores that depend on the texts alone, each after a pause; pair by pair, or a list at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """A checksum of each pair's texts, as a number between 0 and 1."""
        time.sleep(self.seconds * len(pairs))
        return np.array([zlib.crc32("\t".join(pair).encode()) / 2**32 for pair in pairs], dtype=np.float32)

    def rank(self, query: str, documents: list[str]) -> list[dict[str, Any]]:
        """The documents by those scores of theirs."""
        scores = self.predict([(query, document) for document in documents])
        return [{"corpus_id": place, "score": float(score)} for place, score in enumerate(scores)]


def load(scorer: str) -> Scorer:
    """The slow scorer, or a ranking model made of the plain model in a folder."""
    if scorer.startswith(("slow:", "lists:")):
        return SlowScorer(float(scorer.partition(":")[2]))
    import torch

    from modeling_tsarank.modeling_tsarank import TSARankModel

    torch.set_num_threads(1)
    return TSARankModel.from_backbone(scorer, max_query_length=64, max_length=200)


def evaluate(folder: Path, output: Path, scorer: str) -> None:
    """One evaluation of about a dozen blocks."""
    evaluate_collection(
        ScorerSource("scorer", lambda: load(scorer), whole_lists=scorer.startswith("lists:")),
        load_collection(folder),
        EvaluationOptions(top_k=20, depth=30, block_pairs=8, show_progress=False, cache_dir=output / "cache"),
        output,
    )


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
