"""From a ranker's rows to one score a document."""

from __future__ import annotations

import numpy as np
import pytest

from modeling_tsarank.rankers.protocols import last_counts, rank_scores
from modeling_tsarank.ranking_errors import ModelError, NonFiniteScoreError


class Given:
    """Returns the given rows."""

    def __init__(self, rows):
        self.rows = rows

    def rank(self, query, documents):
        return self.rows


def rows(*pairs):
    return [{"corpus_id": place, "score": score} for place, score in pairs]


def test_equal_scores_fall_in_the_given_order_and_stay_close():
    given = rows((3, 0.5), (0, 0.5), (1, 2.0), (2, 0.5))
    scores = rank_scores(Given(given), "q", list("abcd"))
    assert sorted(range(4), key=lambda place: -scores[place]) == [1, 0, 2, 3]
    assert scores == pytest.approx([0.5, 2.0, 0.5, 0.5], abs=1e-6)
    assert len(set(np.float32(scores))) == 4


def test_runs_of_ties_never_climb_over_the_next_score():
    step = float(np.nextafter(np.float32(1), np.float32(0)))
    scores = rank_scores(Given(rows((2, 1.0), (1, 1.0), (0, step))), "q", list("abc"))
    assert sorted(range(3), key=lambda place: -scores[place]) == [1, 2, 0]


def test_without_scores_the_rows_order_counts():
    given = [{"corpus_id": np.int64(2)}, {"corpus_id": np.int64(0)}, {"corpus_id": np.int64(1)}]
    assert rank_scores(Given(given), "q", list("abc")) == [2.0, 1.0, 3.0]
    assert rank_scores(Given([]), "q", []) == []


@pytest.mark.parametrize("given", [rows((0, 1.0)), rows((0, 1.0), (0, 2.0)), rows((0, 1.0), (2, 2.0)), [{}, {}]])
def test_rows_that_are_not_the_documents(given):
    with pytest.raises(ModelError, match="rows for 2 documents"):
        rank_scores(Given(given), "q", ["a", "b"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_scores_that_are_no_numbers(value, place):
    given = rows(*((n, value if n == place else 1.0) for n in range(3)))
    with pytest.raises(NonFiniteScoreError):
        rank_scores(Given(given), "q", list("abc"))


def test_counts_of_mappings_and_objects():
    class Stats:
        calls = 3
        other = 1

    ranker = Given([])
    assert last_counts(ranker) == {}
    ranker.last_stats = {"calls": 2, "tokens": None, "pairs": 4}
    assert last_counts(ranker) == {"calls": 2}
    ranker.last_stats = Stats()
    assert last_counts(ranker) == {"calls": 3}
