"""Reranking while training: the figures are the measuring room's, and the best checkpoint is kept by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.cpt_trainer import CPTTrainer
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
from modeling_tsarank.trainers.reranking_evaluation import RerankingEvaluation, RerankingSet
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer


class MeasuredSFT(RerankingEvaluation, RankingSFTTrainer):
    pass


class MeasuredDistillation(RerankingEvaluation, RankingDistillTrainer):
    pass


class Evaluations(TrainerCallback):
    """Notes what every call of `on_evaluate` is given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(metrics))


def write_collection(folder: Path, sft_rows: list[Any], count: int = 6) -> Path:
    """The training queries' own texts as a collection in BEIR's layout; positives are relevant."""
    (folder / "qrels").mkdir(parents=True)
    corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number, row in enumerate(sft_rows[:count]):
        queries.append({"_id": f"q{number}", "text": row["query"]})
        for kind in ("positives", "negatives"):
            for place, text in enumerate(row[kind]):
                document_id = f"{kind[:3]}{number}-{place}"
                corpus.append({"_id": document_id, "title": "", "text": f"{text} {row['query'].split()[0]}"})
                if kind == "positives":
                    qrels.append(f"q{number}\t{document_id}\t{1 + place}")
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
    return folder


@pytest.fixture(scope="session")
def collection_folder(sft_rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("reranking") / "small", sft_rows)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reranking_set(collection_folder: Path) -> RerankingSet:
    return RerankingSet.load(str(collection_folder), depth=8)


@pytest.fixture
def make_measured(make_ranker: Callable[..., Any], sft_rows: list[Any], tmp_path: Path) -> Callable[..., Any]:
    def make(sets: Any, callbacks: Any = (), eval_rows: Any = None, **changes: Any) -> MeasuredSFT:
        common = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "disable_tqdm": True,
            "trainable": "full",
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-3,
            "num_negatives": 3,
            "score_form": "mean_log_prob",
            "temperature": 0.1,
            "max_length": 120,
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "checkpoint_ranker": False,
        }
        args = RankingSFTConfig(**{**common, **changes})
        return MeasuredSFT(
            make_ranker("tsarank"),
            args,
            sft_rows,
            eval_dataset=eval_rows,
            reranking_sets=sets,
            callbacks=list(callbacks),
        )

    return make


# ---- the set ---------------------------------------------------------------------------------------


def test_the_set_holds_the_first_stage_of_the_limited_queries(collection_folder: Path) -> None:
    small = RerankingSet.load(str(collection_folder), depth=5, limit_queries=3, measures=("nDCG@10", "MRR@10"))
    collection = load_collection(collection_folder)
    run = retrieve(collection, "bm25", 5, query_ids=["q0", "q1", "q2"])
    assert list(small.queries) == ["q0", "q1", "q2"]
    assert {query_id: [i for i, _ in found] for query_id, found in small.candidates.items()} == {
        query_id: list(found) for query_id, found in run.items()
    }
    assert all(
        text == collection.documents[document_id].full_text
        for found in small.candidates.values()
        for document_id, text in found
    )
    judged = {query_id: collection.qrels[query_id] for query_id in run}
    assert small.first_stage == compute_metrics(run, judged, ("ndcg@10", "mrr@10")).aggregate


def test_figures_are_those_of_an_evaluation(
    reranking_set: RerankingSet, collection_folder: Path, make_ranker: Callable[..., Any], tmp_path: Path
) -> None:
    from modeling_tsarank.eval.harness import evaluate_collection
    from modeling_tsarank.eval.options import EvaluationOptions
    from modeling_tsarank.eval.scoring import ScorerSource

    ranker = make_ranker("tsarank")
    run = reranking_set.scores(ranker, list(reranking_set.queries))
    options = EvaluationOptions(top_k=8, measures=("ndcg@10",))
    source = ScorerSource("tiny", lambda: ranker)
    result = evaluate_collection(source, load_collection(collection_folder), options, tmp_path / "evaluation")
    assert reranking_set.measure(run)["ndcg@10"] == pytest.approx(
        result.systems["reranked"].aggregate["ndcg@10"], abs=1e-9
    )
    assert reranking_set.first_stage["ndcg@10"] == pytest.approx(
        result.systems["first_stage"].aggregate["ndcg@10"], abs=1e-9
    )


def test_a_query_without_candidates_counts_nothing(make_ranker: Callable[..., Any]) -> None:
    sets = RerankingSet(
        "two",
        {"a": "bread", "b": "bee"},
        {"a": [("d1", "dough"), ("d2", "ice")], "b": []},
        {"a": {"d1": 1, "d2": 1}, "b": {"d9": 1}},
        {},
    )
    run = sets.scores(make_ranker("tsarank"), ["a", "b"])
    assert run["b"] == {}
    assert sets.measure(run)["ndcg@10"] == pytest.approx(0.5)


# ---- in training -----------------------------------------------------------------------------------


def test_the_best_checkpoint_is_loaded_at_the_end(
    make_measured: Callable[..., Any], reranking_set: RerankingSet
) -> None:
    trainer = make_measured([reranking_set], load_best_model_at_end=True, metric_for_best_model="ndcg@10")
    trainer.train()
    values = {row["step"]: row["eval_ndcg@10"] for row in trainer.state.log_history if "eval_ndcg@10" in row}
    assert list(values) == [1, 2, 3, 4, 5, 6]
    assert len(set(values.values())) > 1
    best = max(values, key=lambda step: values[step])
    assert trainer.state.best_metric == values[best]
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    again = reranking_set.measure(reranking_set.scores(trainer.ranker, list(reranking_set.queries)))
    assert again["ndcg@10"] == values[best]


def test_training_stops_when_nothing_is_better(make_measured: Callable[..., Any], reranking_set: RerankingSet) -> None:
    # Next to no learning rate: the order never changes, so no evaluation after the first is better.
    trainer = make_measured(
        [reranking_set],
        [EarlyStoppingCallback(2)],
        learning_rate=1e-12,
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@10",
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_loss_and_ranking_come_in_one_evaluation(
    make_measured: Callable[..., Any], reranking_set: RerankingSet, sft_rows: list[Any]
) -> None:
    noted = Evaluations()
    trainer = make_measured([reranking_set], [noted], eval_rows=sft_rows[:4], max_steps=2)
    trainer.train()
    assert len(noted.seen) == 2
    assert all({"eval_loss", "eval_listwise_softmax_loss", "eval_ndcg@10"} <= set(metrics) for metrics in noted.seen)
    logged = [row for row in trainer.state.log_history if "eval_ndcg@10" in row]
    assert len(logged) == 2
    assert all("eval_loss" in row for row in logged)


def test_another_dataset_is_evaluated_without_reranking(
    make_measured: Callable[..., Any], reranking_set: RerankingSet, sft_rows: list[Any]
) -> None:
    trainer = make_measured([reranking_set])
    assert "eval_ndcg@10" not in trainer.evaluate(sft_rows[:4])
    assert "eval_loss" not in trainer.evaluate()


def test_several_sets_and_several_datasets(
    make_measured: Callable[..., Any], reranking_set: RerankingSet, sft_rows: list[Any], tmp_path: Path
) -> None:
    write_collection(tmp_path / "other", sft_rows[10:], count=5)
    other = RerankingSet.load(str(tmp_path / "other"), depth=4)
    trainer = make_measured([reranking_set, other], eval_rows={"a": sft_rows[:4], "b": sft_rows[4:8]})
    metrics = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= set(metrics)
    both = metrics["eval_small_ndcg@10"], metrics["eval_other_ndcg@10"]
    assert metrics["eval_ndcg@10"] == pytest.approx(sum(both) / 2)
    with pytest.raises(InputError, match="different names, got small, small"):
        make_measured([reranking_set, reranking_set])


def test_evaluating_does_not_disturb_training(make_measured: Callable[..., Any], reranking_set: RerankingSet) -> None:
    settings = {"trainable": "lora", "lora_dropout": 0.2, "max_steps": 4, "save_strategy": "no"}
    measured = make_measured([reranking_set], **settings)
    measured.train()
    undisturbed = make_measured([], eval_strategy="no", **settings)
    undisturbed.train()
    weights = dict(undisturbed.model.named_parameters())
    for name, value in measured.model.named_parameters():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_cpt_ranks_with_the_model_in_training(
    make_ranker: Callable[..., Any], reranking_set: RerankingSet, sft_rows: list[Any], tmp_path: Path, trainable: str
) -> None:
    ranker = make_ranker("tsarank")
    settings: dict[str, Any] = {
        "use_cpu": True,
        # Not left to the processor: the saved model is compared in float32.
        "bf16": False,
        "disable_tqdm": True,
        "trainable": trainable,
        "max_length": 120,
        "max_query_length": 30,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
    }
    rows = [{"query": row["query"], "document": row["positives"][0]} for row in sft_rows]
    before = reranking_set.measure(reranking_set.scores(ranker, list(reranking_set.queries)))["ndcg@10"]
    trainer = CPTTrainer(
        ranker.backbone,
        CPTConfig(str(tmp_path / "cpt"), **settings),
        rows,
        tokenizer=ranker.tokenizer,
        reranking_sets=[reranking_set],
    )
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(before)
    scores = [trainer.ranker.predict([("bread", "dough")])[0] for _ in range(2)]
    assert scores[0] == scores[1]
    trainer.train()
    logged = [row for row in trainer.state.log_history if "eval_ndcg@10" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    # Training figures stay in the training's log.
    assert all("loss" not in row and "mean_token_accuracy" not in row for row in logged)
    assert sum("mean_token_accuracy" in row for row in trainer.state.log_history) == 3
    trainer.save_model()
    from modeling_tsarank.modeling_tsarank import TSARankModel

    saved = TSARankModel.from_backbone(trainer.args.output_dir, max_length=120, max_query_length=30)
    after = reranking_set.measure(reranking_set.scores(saved, list(reranking_set.queries)))["ndcg@10"]
    assert logged[-1]["eval_ndcg@10"] == pytest.approx(after)


@pytest.mark.parametrize("kind", ["twolar", "twolar_t5"])
def test_distillation_of_either_architecture(
    make_ranker: Callable[..., Any], reranking_set: RerankingSet, distill_rows: list[Any], tmp_path: Path, kind: str
) -> None:
    args = RankingDistillConfig(
        str(tmp_path / "run"),
        use_cpu=True,
        disable_tqdm=True,
        max_steps=2,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
    )
    trainer = MeasuredDistillation(make_ranker(kind), args, distill_rows, reranking_sets=[reranking_set])
    trainer.train()
    assert sum("eval_ndcg@10" in row for row in trainer.state.log_history) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be a whole number"),
        ({"limit_queries": 0}, "limit_queries must be a whole number"),
        ({"measures": ("ndcg",)}, "ndcg"),
        ({"first_stage": "nowhere"}, "no first stage 'nowhere'"),
        ({"split": "dev"}, "dev"),
    ],
)
def test_bad_settings(collection_folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RerankingSet.load(str(collection_folder), **changes)
