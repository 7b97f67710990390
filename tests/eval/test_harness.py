"""The evaluation harness: resuming after real kills, processes side by side, tails, refusals."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import begin, join, start

from modeling_tsarank import TSARankModel
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.fusion import fuse_runs
from modeling_tsarank.eval.harness import evaluate_collection, folder_name
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.run_files import ranked, read_run, write_run
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.eval.types import Collection
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.ranking_errors import InputError, ModelError, NonFiniteScoreError
from modeling_tsarank.scores.fusion import FusionSetting


class OverlapScorer:
    """A real, if simple, reranker: the share of the query's words that the document has."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.last_stats: dict[str, int] = {}

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Scores of pairs; remembers how many it was asked for."""
        self.calls.append(len(pairs))
        self.last_stats = {"tokens": sum(len(text.split()) for pair in pairs for text in pair)}
        shares = [len(set(query.split()) & set(text.split())) / len(set(query.split())) for query, text in pairs]
        return np.array(shares, dtype=np.float32)


def source_of(scorer: OverlapScorer, **settings: object) -> ScorerSource:
    return ScorerSource("overlap", lambda: scorer, settings)


def options_of(tmp_path: Path, **changes: object) -> EvaluationOptions:
    values: dict = {"top_k": 20, "block_pairs": 40, "show_progress": False, "cache_dir": tmp_path / "cache"}
    return EvaluationOptions(**{**values, **changes})


def slow_scorer() -> OverlapScorer:
    class SlowScorer(OverlapScorer):
        def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
            time.sleep(0.1 * len(pairs))
            return super().predict(pairs)

    return SlowScorer()


def evaluate(folder: Path, output: Path, load: Callable[[], Any]) -> None:
    """One evaluation of about a dozen blocks."""
    options = EvaluationOptions(top_k=20, depth=30, block_pairs=8, show_progress=False, cache_dir=output / "cache")
    evaluate_collection(ScorerSource("scorer", load), load_collection(folder), options, output)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_two_processes_rank_as_one(small_folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    def load() -> TSARankModel:
        return TSARankModel.from_backbone(str(tiny_llama), max_query_length=64, max_length=200)

    evaluate(small_folder, tmp_path / "alone", load)
    join(start(2, lambda _: evaluate(small_folder, tmp_path / "two", load)))
    assert (tmp_path / "two" / "run.trec").read_bytes() == (tmp_path / "alone" / "run.trec").read_bytes()
    assert read_json(tmp_path / "two" / "metrics.json")["processes"] == 2
    assert read_json(tmp_path / "alone" / "metrics.json")["dtypes"] == ["float32"]


def test_results_are_what_the_scorer_says(small_collection: Collection, tmp_path: Path) -> None:
    scorer = OverlapScorer()
    options = options_of(tmp_path, top_k=5, depth=30)
    result = evaluate_collection(source_of(scorer), small_collection, options, tmp_path / "out")
    first, run = read_run(tmp_path / "out" / "first_stage.trec"), read_run(tmp_path / "out" / "run.trec")
    for query_id, scores in first.items():
        before, after = ranked(scores), ranked(run[query_id])
        assert set(after[:5]) == set(before[:5])
        assert after[5:] == before[5:], "below the top k the first stage's order stays"
        query = small_collection.queries[query_id]
        texts = [(query, small_collection.documents[document_id].full_text) for document_id in after[:5]]
        assert np.allclose([run[query_id][document_id] for document_id in after[:5]], OverlapScorer().predict(texts))
    assert result.pairs == sum(scorer.calls) == sum(min(5, len(scores)) for scores in first.values())
    qrels = small_collection.qrels
    assert result.systems["first_stage"].aggregate["ndcg@10"] == compute_metrics(first, qrels).aggregate["ndcg@10"]
    assert result.systems["reranked"].aggregate["ndcg@10"] == compute_metrics(run, qrels).aggregate["ndcg@10"]
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["measures"]["reranked"]["ndcg@10"] == result.systems["reranked"].aggregate["ndcg@10"]
    assert metrics["tokens"] > metrics["pairs"] == result.pairs
    table = (tmp_path / "out" / "per_query.csv").read_text().splitlines()
    assert len(table) == 1 + len(small_collection.judged_queries())
    assert not list((tmp_path / "out").glob(".*.png")), "a temporary file was left"


def test_cut_texts_are_counted_in_the_results_and_told_once(
    small_collection: Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Cutting(OverlapScorer):
        def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
            scores = super().predict(pairs)
            self.last_stats |= {"cut_documents": 1, "cut_queries": 2}
            return scores

    options = options_of(tmp_path, block_pairs=2)
    with caplog.at_level(logging.WARNING):
        evaluate_collection(source_of(Cutting()), small_collection, options, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    blocks = len((tmp_path / "out" / "scores.jsonl").read_text().splitlines())
    assert metrics["cut_documents"] == blocks > 1
    assert metrics["cut_queries"] == 2 * blocks
    told = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
    assert told == [
        f"{small_collection.name}: {blocks} documents were truncated to the model's length (max_length)",
        f"{small_collection.name}: {2 * blocks} queries were truncated to the model's length (max_query_length)",
    ]


def test_fusion_mixes_without_scoring_again(small_collection: Collection, tmp_path: Path) -> None:
    scorer = OverlapScorer()
    plain = evaluate_collection(source_of(scorer), small_collection, options_of(tmp_path), tmp_path / "out")
    reranked = read_run(tmp_path / "out" / "run.trec")
    options = options_of(tmp_path, fusion=FusionSetting(0.4, "zscore"))
    mixed = evaluate_collection(source_of(scorer), small_collection, options, tmp_path / "out")
    assert sum(scorer.calls) == plain.pairs, "the second evaluation scored something"
    first = read_run(tmp_path / "out" / "first_stage.trec")
    assert read_run(tmp_path / "out" / "run.trec") == fuse_runs(reranked, first, 0.4, "zscore")
    assert read_run(tmp_path / "out" / "reranker.trec") == reranked
    assert mixed.systems["reranked"] == plain.systems["reranked"]
    assert mixed.row().systems == [mixed.systems[name].aggregate for name in ("first_stage", "reranked", "fused")]
    assert read_json(tmp_path / "out" / "metrics.json")["fusion"]["weight"] == 0.4


@pytest.mark.parametrize(
    ("changes", "settings", "names"),
    [
        ({"top_k": 7}, {}, "top_k was 20 and is now 7"),
        ({}, {"dtype": "bfloat16"}, "dtype was None and is now 'bfloat16'"),
        ({"limit_queries": 3}, {}, "limit_queries was None and is now 3"),
        ({"block_pairs": 41}, {}, "block_pairs was 40 and is now 41"),
    ],
)
def test_other_settings_are_refused(
    small_collection: Collection, tmp_path: Path, changes: dict, settings: dict, names: str
) -> None:
    scorer = OverlapScorer()
    evaluate_collection(source_of(scorer), small_collection, options_of(tmp_path), tmp_path / "out")
    before = (tmp_path / "out" / "run.trec").read_bytes()
    with pytest.raises(InputError, match=names):
        evaluate_collection(
            source_of(scorer, **settings), small_collection, options_of(tmp_path, **changes), tmp_path / "out"
        )
    assert (tmp_path / "out" / "run.trec").read_bytes() == before
    again = options_of(tmp_path, overwrite=True, **changes)
    result = evaluate_collection(source_of(scorer, **settings), small_collection, again, tmp_path / "out")
    assert scorer.calls[-1] > 0
    assert read_json(tmp_path / "out" / "metrics.json")["pairs"] == result.pairs


def test_changed_texts_are_refused(small_collection: Collection, tmp_path: Path) -> None:
    scorer = OverlapScorer()
    evaluate_collection(source_of(scorer), small_collection, options_of(tmp_path), tmp_path / "out")
    small_collection.queries["q3"] += " again"
    with pytest.raises(InputError, match="candidates_hash was"):
        evaluate_collection(source_of(scorer), small_collection, options_of(tmp_path), tmp_path / "out")


def test_a_running_evaluation_is_not_disturbed(
    small_folder: Path, small_collection: Collection, tmp_path: Path
) -> None:
    process = begin(lambda: evaluate(small_folder, tmp_path / "out", slow_scorer))
    try:
        wait_for((tmp_path / "out" / "settings.json").exists)
        with pytest.raises(InputError, match="another process is writing"):
            evaluate_collection(source_of(OverlapScorer()), small_collection, options_of(tmp_path), tmp_path / "out")
    finally:
        process.kill()
        process.join()


def test_a_given_run_is_reranked_and_its_tail_kept(small_collection: Collection, tmp_path: Path) -> None:
    documents = list(small_collection.documents)
    run = {"q0": {document_id: -float(rank) for rank, document_id in enumerate(documents)}}
    write_run(tmp_path / "given.trec", run, tag="given")
    options = options_of(tmp_path, first_stage=str(tmp_path / "given.trec"), top_k=4)
    result = evaluate_collection(source_of(OverlapScorer()), small_collection, options, tmp_path / "out")
    after = ranked(read_run(tmp_path / "out" / "run.trec")["q0"])
    assert set(after[:4]) == set(documents[:4])
    assert after[4:] == documents[4:], "the whole run is kept, not only the top k"
    assert result.queries == len(small_collection.judged_queries()), "queries without candidates count 0"
    assert result.systems["reranked"].per_query["q1"]["ndcg@10"] == 0
    assert options.first_stage_name == "given"


def test_a_run_of_another_collection_is_refused(small_collection: Collection, tmp_path: Path) -> None:
    write_run(tmp_path / "other.trec", {"x1": {"d0": 1.0}}, tag="other")
    write_run(tmp_path / "documents.trec", {"q0": {"unknown": 1.0}}, tag="other")
    for name in ("other.trec", "documents.trec"):
        options = options_of(tmp_path, first_stage=str(tmp_path / name))
        with pytest.raises(InputError, match=r"other\.trec|unknown"):
            evaluate_collection(source_of(OverlapScorer()), small_collection, options, tmp_path / name[:-5])


def test_a_weight_tuned_on_the_reported_split_is_refused(small_collection: Collection, tmp_path: Path) -> None:
    from modeling_tsarank.eval.fusion import hash_qrels, hash_queries

    part = {query_id: small_collection.qrels[query_id] for query_id in ("q0", "q1")}
    setting = FusionSetting(0.1, qrels_hash=hash_qrels(part), query_hashes=hash_queries(part))
    with pytest.raises(InputError, match=r"tuned on 2 of the 12 judged queries"):
        evaluate_collection(
            source_of(OverlapScorer()), small_collection, options_of(tmp_path, fusion=setting), tmp_path / "out"
        )
    assert not (tmp_path / "out" / "settings.json").exists()


class BadScorer:
    """Returns what it is told to."""

    def __init__(self, value: object) -> None:
        self.value = value

    def predict(self, pairs: list[tuple[str, str]]) -> object:
        """The given value, repeated where it is a number."""
        return np.full(len(pairs), self.value) if isinstance(self.value, float) else self.value


def test_bad_scores_are_told(small_collection: Collection, tmp_path: Path) -> None:
    nan = ScorerSource("nan", lambda: BadScorer(float("nan")))
    with pytest.raises(NonFiniteScoreError, match=r"document 'd\d+' of query 'q\d+' as nan"):
        evaluate_collection(nan, small_collection, options_of(tmp_path), tmp_path / "nan")
    assert not (tmp_path / "nan" / "run.trec").exists()
    short = ScorerSource("short", lambda: BadScorer(np.zeros(3)))
    with pytest.raises(ModelError, match=r"returned shape \(3,\) for \d+ pairs"):
        evaluate_collection(short, small_collection, options_of(tmp_path), tmp_path / "short")


@pytest.mark.parametrize(
    "changes", [{"top_k": 0}, {"block_pairs": -1}, {"depth": 5}, {"measures": ("ndcg@ten",)}, {"measures": ()}]
)
def test_senseless_options_are_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(InputError):
        options_of(tmp_path, **changes)


def test_a_collection_without_judgments_is_refused(small_collection: Collection, tmp_path: Path) -> None:
    empty = Collection("empty", small_collection.documents, small_collection.queries, {})
    with pytest.raises(InputError, match="no judged query"):
        evaluate_collection(source_of(OverlapScorer()), empty, options_of(tmp_path), tmp_path / "out")


def test_folder_names() -> None:
    assert folder_name("cqadupstack/android") == "cqadupstack-android"
    assert folder_name("../..") == "dataset"
    assert folder_name("trec-dl-19") == "trec-dl-19"
