"""The harness over real collections, named by TSARANK_DATA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.fusion import tune_fusion
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.eval.significance import compare_runs


class OverlapScorer:
    """The number of the query's words that the document has."""

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """One number a pair."""
        split = [(set(query.lower().split()), set(text.lower().split())) for query, text in pairs]
        return np.array([len(query & text) for query, text in split], dtype=np.float32)


def test_the_published_first_stage_of_dl19_is_measured_as_published(data_dir: Path, tmp_path: Path) -> None:
    collection = load_collection(data_dir / "beir" / "trec-dl-19")
    options = EvaluationOptions(
        first_stage="bm25.top100", measures=("ndcg@1", "ndcg@5", "ndcg@10"), show_progress=False
    )
    result = evaluate_collection(ScorerSource("overlap", OverlapScorer), collection, options, tmp_path)
    published = {"ndcg@1": 54.26, "ndcg@5": 52.78, "ndcg@10": 50.58}  # TWOLAR, Table 2
    for measure, value in published.items():
        assert 100 * result.systems["first_stage"].aggregate[measure] == pytest.approx(value, abs=0.005)
    assert result.pairs == 4300
    comparison = compare_runs(
        read_run(tmp_path / "run.trec"), read_run(tmp_path / "first_stage.trec"), collection.qrels
    )
    assert comparison.difference > 0, "counting words is worse than BM25"
    assert comparison.queries == 43


def test_tuning_on_one_half_helps_no_less_than_either_alone(data_dir: Path, tmp_path: Path) -> None:
    collection = load_collection(data_dir / "beir" / "adi")
    first = retrieve(collection, "bm25", depth=20, cache_dir=tmp_path)
    texts = {query_id: [collection.documents[name].full_text for name in scores] for query_id, scores in first.items()}
    scorer = OverlapScorer()
    reranked = {
        query_id: {
            name: float(score)
            for name, score in zip(
                first[query_id],
                scorer.predict([(collection.queries[query_id], text) for text in texts[query_id]]),
                strict=True,
            )
        }
        for query_id in first
        if first[query_id]
    }
    tuned = tune_fusion(reranked, first, collection.qrels)
    assert tuned.setting.value == max(tuned.curve)
    assert tuned.curve[0] != tuned.curve[-1]
