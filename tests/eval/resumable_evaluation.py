"""One evaluation in a process of its own, for tests that kill it or start it twice beside itself.

python resumable_evaluation.py COLLECTION OUTPUT (slow:SECONDS | MODEL_FOLDER)
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

import numpy as np

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.scoring import Scorer, ScorerSource


class SlowScorer:
    """Scores that depend on the texts alone, each after a pause."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """A checksum of each pair's texts, as a number between 0 and 1."""
        time.sleep(self.seconds * len(pairs))
        return np.array([zlib.crc32("\t".join(pair).encode()) / 2**32 for pair in pairs], dtype=np.float32)


def load(scorer: str) -> Scorer:
    """The slow scorer, or a ranking model made of the plain model in a folder."""
    if scorer.startswith("slow:"):
        return SlowScorer(float(scorer.partition(":")[2]))
    import torch

    from modeling_tsarank.modeling_tsarank import TSARankModel

    torch.set_num_threads(1)
    return TSARankModel.from_backbone(scorer, max_query_length=64, max_length=200)


def evaluate(folder: Path, output: Path, scorer: str) -> None:
    """One evaluation of about a dozen blocks."""
    evaluate_collection(
        ScorerSource("scorer", lambda: load(scorer)),
        load_collection(folder),
        EvaluationOptions(top_k=20, depth=30, block_pairs=8, show_progress=False, cache_dir=output / "cache"),
        output,
    )


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
