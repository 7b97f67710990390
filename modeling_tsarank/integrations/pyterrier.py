"""PyTerrier: `TSARankTransformer`, for `bm25 >> pt.text.get_text(dataset) >> TSARankTransformer()`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt
from pyterrier.model import add_ranks

from . import as_ranker


class TSARankTransformer(pt.Transformer):
    """Scores the rows of a result frame (`qid`, `query`, `docno`, `text`) and ranks them anew for each query.

    Args:
        model: A name as `load_ranker` takes it, or a loaded ranker.
        text_field: Column with the documents' texts.
    """

    def __init__(self, model: Any = None, text_field: str = "text") -> None:
        self.ranker, self.text_field = as_ranker(model), text_field

    def transform(self, results: pd.DataFrame) -> pd.DataFrame:
        """The rows with new `score` and `rank`."""
        pt.validate.result_frame(results, extra_columns=["query", self.text_field])
        pairs = list(zip(results["query"], results[self.text_field], strict=True))
        scored = results.drop(columns=["score", "rank"], errors="ignore").assign(score=self.ranker.predict(pairs))
        ranked: pd.DataFrame = add_ranks(scored)
        return ranked
