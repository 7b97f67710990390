"""nDCG, MAP, MRR, recall and precision of a run, identical to trec_eval's.

Computed by pytrec_eval (see `ndcg/trec_measures.py`, which is shared with the `evaluate` module on the Hub); this
module is the package's interface to it. `ndcg@k` is trec_eval's `ndcg_cut`: the gain is the grade, the discount is
log2, and ties are broken by document id, descending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError


DEFAULT_MEASURES = ("ndcg@10",)


@dataclass(frozen=True)
class MetricResult:
    """The measures of a run.

    Attributes:
        aggregate: Mean of each measure over queries, between 0 and 1.
        per_query: Query id to measure to value, in the order of the qrels.
    """

    aggregate: dict[str, float]
    per_query: dict[str, dict[str, float]]


def canonical_measure(name: str) -> str:
    """The canonical name of a measure in results: `nDCG@10` becomes `ndcg@10`.

    Raises:
        InputError: Unknown measure; the message lists the supported ones.
    """
    try:
        return _trec_measures().parse_measure(name).name
    except ValueError as error:
        raise InputError(str(error)) from None


def compute_metrics(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = DEFAULT_MEASURES,
    complete: bool = True,
    relevance_level: int = 1,
) -> MetricResult:
    """Evaluates `run` against `qrels`.

    Args:
        run: Query id to document id to score. Queries without judgments are ignored.
        qrels: Query id to document id to grade; 0 and below is not relevant.
        measures: Any of `ndcg@k`, `map`, `map@k`, `mrr@k`, `recall@k`, `p@k`, case-insensitive. `mrr@k` is trec_eval's
            `recip_rank` of the run truncated at k.
        complete: True is `trec_eval -c`: the mean is over every query of the qrels, and one that is missing from the
            run counts 0. False: over the queries in both. A judged query that has no relevant document counts 0 in
            both, as in trec_eval.
        relevance_level: Lowest grade that is relevant in the binary measures (`trec_eval -l`); TREC Deep Learning
            uses 2 for MAP, MRR, recall and precision. nDCG does not use it.

    Returns:
        Means and per-query values under the canonical (lower-case) names.

    Raises:
        InputError: Unknown measure, a score that is not a number, a grade that is not whole, an id that is not a
            usable string, empty qrels, or a run and qrels that share no query.
        ResourceError: pytrec_eval is not installed.
    """
    names = [measures] if isinstance(measures, str) else list(measures)
    trec = _trec_measures()
    try:
        aggregate, per_query = trec.evaluate_run(run, qrels, names, complete, relevance_level)
    except ValueError as error:
        raise InputError(str(error)) from None
    return MetricResult(aggregate, per_query)


def _trec_measures() -> Any:
    """The computing module, imported lazily so that this module can be imported without the extra."""
    require("pytrec_eval", extra="eval", purpose="Evaluating a run")
    return require("modeling_tsarank.eval.ndcg.trec_measures")
