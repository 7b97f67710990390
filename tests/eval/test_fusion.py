"""Fusion of reranker and first stage, and the choice of its weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modeling_tsarank.eval.fusion import append_tail, fuse_runs, hash_qrels, refuse_tuned_split, tune_fusion
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import ranked, read_run, write_run
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.scores.fusion import NORMALIZATIONS, FusionSetting, fuse_query, fusion_setting, normalize


SCORES = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@given(st.lists(SCORES, min_size=2, max_size=20))
def test_normalisation_equals_the_textbook(scores: list[float]) -> None:
    values = np.array(scores)
    spread = values.max() - values.min()
    if spread < 1e-3:
        return
    assert normalize(scores, "minmax") == pytest.approx((values - values.min()) / spread, abs=1e-9)
    assert normalize(scores, "zscore") == pytest.approx(stats.zscore(values), abs=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equal_scores_normalise_to_zero(normalization) -> None:
    assert normalize([3.5] * 4, normalization).tolist() == [0.0] * 4
    assert normalize([7.0], normalization).tolist() == [0.0]
    assert normalize([], normalization).tolist() == []


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("score", [np.inf, -np.inf, np.nan])
def test_infinite_scores_are_refused(normalization, score: float) -> None:
    with pytest.raises(InputError, match=f"scores of {score} cannot be fused"):
        normalize([1.0, score, 2.0], normalization)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scores", [[1.7e308, -1.7e308, 0.0], [5e-324, 0.0], [-1e-300, 1e-300]])
def test_extreme_scores_stay_finite(scores: list[float], normalization) -> None:
    assert np.isfinite(normalize(scores, normalization)).all()


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(SCORES, SCORES), min_size=1),
    st.floats(0, 1),
    st.sampled_from(NORMALIZATIONS),
)
def test_fused_scores_are_the_convex_combination(scores: dict, weight: float, normalization) -> None:
    reranked = {document_id: pair[0] for document_id, pair in scores.items()}
    first = {document_id: pair[1] for document_id, pair in reversed(scores.items())}
    fused = fuse_query(reranked, first, weight, normalization)
    own = dict(zip(reranked, normalize(list(reranked.values()), normalization), strict=True))
    other = dict(zip(first, normalize(list(first.values()), normalization), strict=True))
    for document_id in scores:
        expected = (1 - weight) * own[document_id] + weight * other[document_id]
        assert fused[document_id] == pytest.approx(expected, abs=1e-9)


def test_the_ends_of_the_weight_are_the_two_rankings() -> None:
    reranked = {"a": 1.0, "b": 3.0, "c": 2.0}
    first = {"a": 9.0, "b": 1.0, "c": 4.0}
    assert ranked(fuse_query(reranked, first, 0.0, "minmax")) == ["b", "c", "a"]
    assert ranked(fuse_query(reranked, first, 1.0, "minmax")) == ["a", "c", "b"]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(-(2.0**100), 2.0**100, allow_nan=False, width=32)),
    st.permutations("uvwxyz"),
)
def test_the_tail_stays_below_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, head: dict[str, float], tail: list[str]
) -> None:
    combined = append_tail(head, tail)
    path = tmp_path_factory.mktemp("run") / "run.trec"
    write_run(path, {"q": combined}, tag="t")
    order = ranked(read_run(path)["q"])  # single precision, as trec_eval reads it
    assert order == ranked(head) + list(tail)


def test_a_long_tail_survives_single_precision() -> None:
    tail = [f"d{number:04d}" for number in range(3000)]
    for lowest in (-12345.678, 0.0, 1e9, -3e-7):
        assert ranked(append_tail({"top": lowest}, tail)) == ["top", *tail]


def test_only_the_top_k_is_mixed() -> None:
    first = {"q": {"a": 5.0, "b": 4.0, "c": 3.0, "d": 2.0}}
    reranked = {"q": {"a": 0.0, "b": 1.0, "c": -5.0, "d": -9.0}}
    assert ranked(fuse_runs(reranked, first, 0.0, top_k=2)["q"]) == ["b", "a", "c", "d"]
    assert ranked(fuse_runs({"q": {"d": 1.0, "c": 0.0}}, first, 0.0)["q"]) == ["d", "c", "a", "b"]
    assert fuse_runs({}, first, 0.5)["q"].keys() == first["q"].keys()


def test_runs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InputError, match="document 'x' of query 'q'"):
        fuse_runs({"q": {"x": 1.0}}, {"q": {"a": 1.0}}, 0.5)
    with pytest.raises(InputError, match="query 'other'"):
        fuse_runs({"other": {"a": 1.0}}, {"q": {"a": 1.0}}, 0.5)


def random_runs(seed: int) -> tuple[dict, dict, dict]:
    """Two noisy views of the same relevance, so that mixing them helps."""
    generator = np.random.default_rng(seed)
    documents = [f"d{number}" for number in range(30)]
    runs: tuple[dict, dict, dict] = ({}, {}, {})
    for query in range(40):
        grades = generator.integers(0, 3, size=30)
        for run, noise in zip(runs[:2], (1.2, 1.6), strict=True):
            scores = grades + noise * generator.standard_normal(30)
            run[f"q{query}"] = dict(zip(documents, map(float, scores), strict=True))
        runs[2][f"q{query}"] = dict(zip(documents, map(int, grades), strict=True))
    return runs


def test_tuning_finds_the_best_weight_of_the_grid(tmp_path: Path) -> None:
    reranked, first, qrels = random_runs(3)
    tuned = tune_fusion(reranked, first, qrels, "nDCG@10", "zscore", steps=10)
    values = [
        compute_metrics(fuse_runs(reranked, first, step / 10, "zscore"), qrels).aggregate["ndcg@10"]
        for step in range(11)
    ]
    assert tuned.curve == values
    assert tuned.setting.weight == tuned.weights[int(np.argmax(values))]
    assert 0 < tuned.setting.weight < 1, "mixing two noisy views helps"
    assert tuned.setting.measure == "ndcg@10"
    tuned.setting.save(tmp_path / "fusion.json")
    assert FusionSetting.load(tmp_path / "fusion.json") == tuned.setting


def test_equal_weights_are_decided_for_the_reranker(caplog: pytest.LogCaptureFixture) -> None:
    run = {"q": {"a": 1.0, "b": 0.0}}
    assert tune_fusion(run, run, {"q": {"a": 1}}).setting.weight == 0.0
    assert caplog.messages == ["the weight is fitted on 1 judged queries; below 20 it is mostly noise"]
    caplog.clear()
    many = {f"q{number}": {"a": 1.0, "b": 0.0} for number in range(20)}
    tune_fusion(many, many, {name: {"a": 1} for name in many})
    assert caplog.messages == []


def test_a_tuned_split_is_not_reported() -> None:
    reranked, first, qrels = random_runs(4)
    setting = tune_fusion(reranked, first, qrels, steps=2).setting
    with pytest.raises(InputError, match="tuned on 40 of the 40"):
        refuse_tuned_split(setting, qrels, "dev")
    reordered = {query_id: dict(reversed(qrels[query_id].items())) for query_id in reversed(qrels)}
    with pytest.raises(InputError, match="tuned on 40 of the 40"):
        refuse_tuned_split(setting, reordered, "dev in another order")
    with pytest.raises(InputError, match="tuned on 1 of the 2"):
        refuse_tuned_split(setting, {"q7": qrels["q7"], "new": {"d0": 1}}, "a mixture")
    refuse_tuned_split(setting, {"q7": {"d0": 1}}, "other judgments of a query with the same id")
    refuse_tuned_split(FusionSetting(0.3), qrels, "a plain weight")


def test_the_hash_of_judgments_is_about_their_content() -> None:
    qrels = {"q": {"a": 1, "b": 0}}
    assert hash_qrels(qrels) == hash_qrels({"q": {"b": 0, "a": 1}})
    others = [{"q": {"a": 1, "b": 1}}, {"q": {"a": 1}}, {"p": {"a": 1, "b": 0}}, {}, {"q": {"a1": 1, "b": 0}}]
    assert hash_qrels(qrels) not in {hash_qrels(other) for other in others}


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_weights_out_of_range_are_refused(weight: object) -> None:
    with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
        FusionSetting(weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight": 2}',
        '{"weight": 0.1, "speed": 3}',
        '{"weight": 1, "query_hashes": 3}',
        "null",
        "\xff",
    ],
)
def test_bad_setting_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "fusion.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"fusion\.json[^_]*$"):
        FusionSetting.load(tmp_path / "fusion.json")
    with pytest.raises(InputError, match="no such file"):
        FusionSetting.load(tmp_path / "missing.json")


def test_senseless_tuning_is_refused() -> None:
    run = {"q": {"a": 1.0}}
    with pytest.raises(InputError, match="at least 1"):
        tune_fusion(run, run, {"q": {"a": 1}}, steps=0)
    with pytest.raises(InputError):
        tune_fusion(run, run, {"q": {"a": 1}}, measure="ndgc@10")
    with pytest.raises(InputError, match="unknown normalization"):
        FusionSetting(0.5, "rank")  # type: ignore[arg-type]


def test_a_learned_weight_orders_as_the_logistic_regression_does() -> None:
    """The gradient of the likelihood vanishes at the coefficients that give the weight."""
    reranked, first, qrels = random_runs(5)
    qrels = {query: {one: int(grade > 1) for one, grade in grades.items()} for query, grades in qrels.items()}
    tuned = tune_fusion(reranked, first, qrels, normalization="zscore", learned=True)
    weight = tuned.setting.weight
    assert len(tuned.curve) == 1
    parts = [np.concatenate([normalize(list(run[q].values()), "zscore") for q in qrels]) for run in (reranked, first)]
    relevant = np.array([grade for grades in qrels.values() for grade in grades.values()])
    mixed = (1 - weight) * parts[0] + weight * parts[1]
    slope, intercept = np.polynomial.polynomial.polyfit(mixed, relevant, 1)[::-1]
    for _ in range(50):  # Newton's method on the two parameters that are left
        p = 1 / (1 + np.exp(-(slope * mixed + intercept)))
        design = np.stack([mixed, np.ones_like(mixed)], axis=1)
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (relevant - p))
        slope, intercept = slope + step[0], intercept + step[1]
    p = 1 / (1 + np.exp(-(slope * mixed + intercept)))
    assert [abs(float(np.sum((relevant - p) * part))) < 0.1 for part in parts] == [True, True]

    worthless = {query: dict.fromkeys(scores, 0.0) for query, scores in first.items()}
    assert tune_fusion(reranked, worthless, qrels, learned=True).setting.weight == 0.0
    with pytest.raises(InputError, match="both kinds are needed"):
        tune_fusion(reranked, first, {"q0": {"d0": 0}}, learned=True)


def test_a_setting_by_weight_text_or_file(tmp_path: Path) -> None:
    FusionSetting(0.2, "rrf").save(tmp_path / "fusion.json")
    assert fusion_setting("0.2", "rrf") == fusion_setting(tmp_path / "fusion.json") == FusionSetting(0.2, "rrf")
    assert fusion_setting(0.2) == FusionSetting(0.2)
    with pytest.raises(InputError, match="was tuned with rrf"):
        fusion_setting(tmp_path / "fusion.json", "minmax")
