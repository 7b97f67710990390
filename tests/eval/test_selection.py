"""The best documents: trec_eval's tie rule, whatever the depth."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.selection import TopSelector


@given(
    scores=st.dictionaries(
        st.sampled_from(["1", "10", "2", "9", "a", "A", "é", "日本", "\U0001f600"]),
        st.integers(-2, 2).map(float),
        min_size=1,
    ),
    depth=st.integers(1, 12),
)
def test_selects_what_a_full_sort_in_trec_evals_order_would(scores, depth):
    ids = list(scores)
    best = TopSelector(ids).select(np.array([scores[name] for name in ids], dtype=np.float32), depth)
    assert list(best) == ranked(scores, depth)
    assert all(best[name] == scores[name] for name in best)


def test_positions_name_the_documents_that_the_scores_belong_to():
    selector = TopSelector(["a", "b", "c", "d"])
    assert selector.select(np.array([1.0, 3.0]), 5, np.array([3, 1])) == {"b": 3.0, "d": 1.0}
    assert list(selector.select(np.array([2.0, 2.0, 2.0]), 2, np.array([0, 2, 1]))) == ["c", "b"]
    assert selector.select(np.zeros(0), 5, np.zeros(0, dtype=int)) == {}
