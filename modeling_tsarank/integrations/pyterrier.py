"""PyTerrier: `TSARankTransformer`, for `bm25 >> pt.text.get_text(dataset) >> TSARankTransformer()`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt
from pyterrier.model import add_ranks

from ..rankers.protocols import rank_scores
from . import as_ranker


class TSARankTransformer(pt.Transformer):
    """Scores the rows of a result frame (`qid`, `query`, `docno`, `text`) and ranks them again for each query.

    Args:
        model: A name for `load_ranker`, or a loaded ranker.
        text_field: Column with the documents' texts.
    """

    def __init__(self, model: Any = None, text_field: str = "text") -> None:
        self.ranker, self.text_field = as_ranker(model), text_field

    def transform(self, results: pd.DataFrame) -> pd.DataFrame:
        """The rows with new `score` and `rank`."""
        pt.validate.result_frame(results, extra_columns=["query", self.text_field])
        pairs = list(zip(results["query"], results[self.text_field], strict=True))
        scores = self.ranker.predict(pairs) if hasattr(self.ranker, "predict") else self._list_scores(results)
        scored = results.drop(columns=["score", "rank"], errors="ignore").assign(score=scores)
        ranked: pd.DataFrame = add_ranks(scored)
        return ranked

    def _list_scores(self, results: pd.DataFrame) -> pd.Series:
        """The scores of a ranker of lists, which gets each query's rows in the given order of ranks."""
        found = pd.Series(0.0, index=results.index)
        ordered = results.sort_values("rank", kind="stable") if "rank" in results else results
        for _, rows in ordered.groupby("qid", sort=False):
            found[rows.index] = rank_scores(self.ranker, rows["query"].iloc[0], rows[self.text_field].tolist())
        return found
