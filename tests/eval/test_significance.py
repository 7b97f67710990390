"""Significance tests against exact enumeration, scipy and known tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modeling_tsarank.eval.significance import compare_runs, compare_values, correct, holm, randomization_test
from modeling_tsarank.ranking_errors import InputError


def enumerated_p(differences: list[float]) -> float:
    """The definition, in plain loops: the share of sign choices whose mean is as far from 0 as the observed one."""
    observed = abs(sum(differences))
    extreme = total = 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        total += 1
        mean = abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        extreme += mean >= observed - 1e-9
    return extreme / total


DIFFERENCES = st.lists(st.integers(-20, 20).map(lambda value: value / 20), min_size=1, max_size=9)


@given(DIFFERENCES)
@settings(deadline=None)
def test_small_samples_are_enumerated_exactly(differences: list[float]) -> None:
    p_value, exact = randomization_test(differences)
    assert exact
    assert p_value == pytest.approx(enumerated_p(differences), abs=1e-12)


@pytest.mark.parametrize("size", [3, 8, 12])
def test_exact_values_equal_scipys(size: int) -> None:
    differences = np.random.default_rng(size).normal(0.2, 1.0, size)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True, axis=0
    )
    assert randomization_test(differences) == (pytest.approx(expected.pvalue, abs=1e-12), True)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.6])
def test_drawn_signs_come_near_the_exact_value(shift: float) -> None:
    differences = np.random.default_rng(7).normal(shift, 1.0, 15)
    exact_p, exact = randomization_test(differences)
    drawn_p, drawn_exact = randomization_test(differences, resamples=30_000)
    assert (exact, drawn_exact) == (True, False)
    assert drawn_p == pytest.approx(exact_p, abs=5 * math.sqrt(exact_p * (1 - exact_p) / 30_000) + 1e-4)
    assert randomization_test(differences, resamples=30_000) == (drawn_p, False), "the seed decides"
    assert randomization_test(differences, resamples=30_000, seed=1)[0] != drawn_p


def test_drawn_values_agree_with_t_on_many_normal_queries() -> None:
    differences = np.random.default_rng(2).normal(0.1, 1.0, 400)
    p_value, exact = randomization_test(differences)
    assert not exact
    assert p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


def test_a_drawn_p_value_is_never_zero() -> None:
    assert randomization_test([1.0] * 100, resamples=999) == (1 / 1000, False)


def test_the_share_of_false_alarms_is_the_level() -> None:
    generator = np.random.default_rng(5)
    alarms = sum(randomization_test(generator.normal(size=10))[0] <= 0.05 for _ in range(800))
    assert 0.03 < alarms / 800 < 0.07


def test_comparison_of_paired_values() -> None:
    generator = np.random.default_rng(1)
    first = generator.uniform(size=50)
    second = np.clip(first + generator.normal(0.05, 0.1, 50), 0, 1)
    second[:5] = first[:5]
    comparison = compare_values(first, second)
    reference = stats.ttest_rel(second, first)
    low, high = reference.confidence_interval(0.95)
    differences = second - first
    assert comparison.t_statistic == pytest.approx(reference.statistic, abs=1e-9)
    assert comparison.t_p == pytest.approx(reference.pvalue, abs=1e-12)
    assert (comparison.ci_low, comparison.ci_high) == (pytest.approx(low), pytest.approx(high))
    assert comparison.difference == pytest.approx(second.mean() - first.mean())
    assert comparison.effect_size == pytest.approx(reference.statistic / math.sqrt(50))
    assert (comparison.wins, comparison.ties, comparison.losses) == (
        int((differences > 0).sum()),
        5,
        int((differences < 0).sum()),
    )


def test_swapping_the_runs_changes_only_signs() -> None:
    generator = np.random.default_rng(8)
    first, second = generator.uniform(size=(2, 12))
    one, other = compare_values(first, second), compare_values(second, first)
    assert other.difference == pytest.approx(-one.difference)
    assert (other.wins, other.losses) == (one.losses, one.wins)
    assert other.randomization_p == pytest.approx(one.randomization_p, abs=1e-12)
    assert (other.ci_low, other.ci_high) == (pytest.approx(-one.ci_high), pytest.approx(-one.ci_low))


def test_equal_runs_and_equal_differences() -> None:
    same = compare_values([0.1, 0.5, 0.9], [0.1, 0.5, 0.9 + 1e-15])
    assert (same.t_p, same.randomization_p, same.effect_size, same.ties) == (1.0, 1.0, 0.0, 3)
    shifted = compare_values([0.0, 0.25, 0.5], [0.5, 0.75, 1.0])
    assert (shifted.t_p, shifted.effect_size, shifted.wins) == (0.0, math.inf, 3)
    assert shifted.randomization_p == pytest.approx(2 / 8)


def test_comparison_of_runs_counts_missing_queries_as_zero() -> None:
    qrels = {f"q{number}": {"good": 1} for number in range(4)}
    good = {query_id: {"good": 2.0, "bad": 1.0} for query_id in qrels}
    partial = {"q0": {"good": 2.0}, "q1": {"bad": 2.0, "good": 1.0}}
    comparison = compare_runs(partial, good, qrels, "nDCG@10", "tiny")
    assert (comparison.measure, comparison.queries) == ("ndcg@10", 4)
    assert (comparison.wins, comparison.ties, comparison.losses) == (3, 1, 0)
    assert comparison.mean_a == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert comparison.mean_b == 1.0


def test_holm_on_a_worked_example() -> None:
    # By hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p_values)) + 1e-12
    assert [p_values[index] for index in np.argsort(adjusted, kind="stable")] == sorted(
        p_values, key=lambda value: adjusted[p_values.index(value)]
    )


def test_correction_keeps_the_families_apart() -> None:
    generator = np.random.default_rng(3)
    raw = [compare_values(*generator.uniform(size=(2, 9)), name=str(number)) for number in range(3)]
    fixed = correct(raw)
    assert [one.t_p_holm for one in fixed] == holm([one.t_p for one in raw])
    assert [one.randomization_p_holm for one in fixed] == holm([one.randomization_p for one in raw])
    assert [one.name for one in fixed] == ["0", "1", "2"]


def test_too_little_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        compare_values([0.5], [0.6])
    with pytest.raises(InputError, match="cannot be paired"):
        compare_values([0.5, 0.5], [0.6])
    with pytest.raises(InputError, match="at least 1"):
        randomization_test([0.1, 0.2], resamples=0)
    with pytest.raises(InputError):
        compare_runs({"x": {"a": 1.0}}, {"q": {"a": 1.0}}, {"q": {"a": 1}, "p": {"a": 1}})
