"""nDCG@k, MAP, MRR@k, Recall@k and Precision@k over runs and qrels, as an `evaluate` metric, identical to trec_eval's.

The gain is the relevance grade, the discount is log2, ties are broken by document id (descending), a query missing
from the run counts 0 (`-c`). Computed by pytrec_eval (Van Gysel and de Rijke, SIGIR 2018).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import datasets
import evaluate

from .trec_measures import checked_grade, checked_score, evaluate_run, nested_from_rows, place_of, whole_number


_CITATION = """\
@article{jarvelin2002cumulated,
  title = {Cumulated gain-based evaluation of {IR} techniques},
  author = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  journal = {ACM Transactions on Information Systems},
  volume = {20},
  number = {4},
  pages = {422--446},
  year = {2002}
}
"""

_DEFAULT_CUTOFFS = (1, 5, 10)


class NDCG(evaluate.Metric):
    """nDCG@k and other trec_eval measures. Runs and qrels may be added in batches of any, also unequal, sizes.

    Args:
        predictions: rows {"query_id": str, "doc_id": str, "score": float}, or tuples in that order,
            or a whole run {query_id: {doc_id: score}}.
        references: rows {"query_id": str, "doc_id": str, "relevance": whole number}, or tuples in that order,
            or whole qrels {query_id: {doc_id: relevance}}. Their number is independent of the predictions'.
        k (`int` or list of `int`, *optional*): cutoffs of nDCG. Without `k` and `measures`: 1, 5 and 10.
        measures (list of `str`, *optional*): more measures by name: ndcg@k, map, map@k, mrr@k, recall@k, p@k.
        per_query (`bool`, *optional*, defaults to `False`): also return the values of every query.
        complete (`bool`, *optional*, defaults to `True`): average over all queries of the references.
        relevance_level (`int`, *optional*, defaults to 1): lowest grade that is relevant in the binary measures.
    Returns:
        `dict`: measure to mean, such as {"ndcg@10": 0.5058}; with `per_query` also {"per_query": {query_id: {…}}}.
    Examples:

        >>> metric = evaluate.load("path/to/ndcg")
        >>> metric.compute(
        ...     predictions={"q1": {"d1": 0.2, "d2": 0.9}},
        ...     references={"q1": {"d1": 1}},
        ...     k=[1, 2],
        ... )
        {'ndcg@1': 0.0, 'ndcg@2': 0.6309297535714575}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=_CITATION,
            inputs_description=inspect.getdoc(type(self)) or "",
            features=datasets.Features(
                {
                    "predictions": {
                        "query_id": datasets.Value("string"),
                        "doc_id": datasets.Value("string"),
                        "score": datasets.Value("float64"),
                    },
                    "references": {
                        "query_id": datasets.Value("string"),
                        "doc_id": datasets.Value("string"),
                        # With an integer type, `evaluate` would truncate 0.9 to 0 before it can be checked here.
                        "relevance": datasets.Value("float64"),
                    },
                }
            ),
            reference_urls=["https://github.com/usnistgov/trec_eval", "https://github.com/terrierteam/pytrec_eval"],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one row to the run, one row to the qrels, or both."""
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            **kwargs,
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds rows, or whole runs and qrels; either side may be left out."""
        run_rows = _rows(predictions, "predictions", "score")
        qrel_rows = _rows(references, "references", "relevance")
        length = max(len(run_rows), len(qrel_rows))
        if length == 0:
            raise ValueError("predictions and references are both empty; expected rows or whole runs")
        # `evaluate` stores both sides as columns of one table and needs equal lengths: pad with blank rows.
        _pad(run_rows, length, "score")
        _pad(qrel_rows, length, "relevance")
        super().add_batch(predictions=run_rows, references=qrel_rows, **kwargs)

    def _compute(
        self,
        predictions: Iterable[Mapping[str, Any]],
        references: Iterable[Mapping[str, Any]],
        k: int | Iterable[int] | None = None,
        measures: Iterable[str] | None = None,
        per_query: bool = False,
        complete: bool = True,
        relevance_level: int = 1,
    ) -> dict[str, Any]:
        if k is None:
            k = _DEFAULT_CUTOFFS if measures is None else ()
        cutoffs = k if isinstance(k, Iterable) and not isinstance(k, str) else (k,)
        names = [f"ndcg@{whole_number(cutoff, 'k')}" for cutoff in cutoffs]
        names += [measures] if isinstance(measures, str) else list(measures or ())
        run = nested_from_rows(_values(predictions, "score"), "predictions")
        qrels = nested_from_rows(_values(references, "relevance"), "references")
        means, values = evaluate_run(run, qrels, names, complete=complete, relevance_level=relevance_level)
        return {**means, "per_query": values} if per_query else means


def _rows(given: Any, side: str, value_name: str) -> list[dict[str, Any]]:
    """Rows, tuples or a nested mapping, as rows with string ids."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        if not all(isinstance(values, Mapping) for values in given.values()):
            raise ValueError(f"{side}: a mapping must map query id to document id to {value_name}")
        triples = [(query, doc, value) for query, values in given.items() for doc, value in values.items()]
    else:
        triples = [_triple(row, side, value_name) for row in given]
    for query_id, doc_id, value in triples:
        if not (_is_id(query_id) and _is_id(doc_id)) or value is None:
            raise ValueError(
                f"{side}: a row lacks an id or its {value_name}, or an id is neither text nor a whole number: "
                f"{(query_id, doc_id, value)!r}"
            )
    # Checked here because `evaluate` converts values when it stores them.
    check = checked_score if value_name == "score" else checked_grade
    return [
        {"query_id": str(query), "doc_id": str(doc), value_name: check(value, f"{side}: {place_of(query, doc)}")}
        for query, doc, value in triples
    ]


def _is_id(identifier: Any) -> bool:
    """Whether this is a string or a whole number; pandas turns a column of numbers and NaN into floats."""
    return bool(identifier) if isinstance(identifier, str) else _is_whole(identifier)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _triple(row: Any, side: str, value_name: str) -> tuple[Any, Any, Any]:
    try:
        if isinstance(row, Mapping):
            return row["query_id"], row["doc_id"], row[value_name]
        query_id, doc_id, value = row
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{side}: expected rows of query_id, doc_id and {value_name}, found {row!r}") from None
    return query_id, doc_id, value


def _pad(rows: list[dict[str, Any]], length: int, value_name: str) -> None:
    blank = {"query_id": "", "doc_id": "", value_name: 0}
    rows.extend(dict(blank) for _ in range(length - len(rows)))


def _values(rows: Iterable[Mapping[str, Any]], value_name: str) -> Iterable[tuple[str, str, Any]]:
    return ((row["query_id"], row["doc_id"], row[value_name]) for row in rows if row["query_id"])
