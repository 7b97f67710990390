"""Calibrates a run's scores as probabilities of relevance and measures the calibration on held-out queries."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.eval.fusion import warn_of_few_queries
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import ranked, read_qrels, read_run
from modeling_tsarank.eval.types import Qrels, Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.scores.calibration import METHODS, Calibration, normalized


BINS = 10
FOLDS = 5


@dataclass(frozen=True)
class JudgedScores:
    """The scores of a run with their relevance judgments.

    Attributes:
        scores: Shape `(n,)`, grouped by query.
        relevant: Shape `(n,)`, boolean.
        queries: Shape `(n,)`: index of the query of each score, from 0.
    """

    scores: np.ndarray
    relevant: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True)
class Quality:
    """Quality of predicted probabilities: expected calibration error and Brier score, both 0 at best.

    Attributes:
        error: Mean over the documents of |fraction of relevant documents - mean probability| of their bin, with `BINS`
            bins of equal width (Guo et al., 2017).
        brier: Mean squared difference between probability and relevance.
        bins: For each non-empty bin: documents, mean probability, fraction of relevant documents.
    """

    error: float
    brier: float
    bins: tuple[tuple[int, float, float], ...]


def judged_scores(
    run: Run, qrels: Qrels, relevance_level: int = 1, judged_only: bool = False, top_k: int | None = None
) -> JudgedScores:
    """Joins a run with relevance judgments.

    Args:
        run: Scores by query and document.
        qrels: Grades by query and document.
        relevance_level: Lowest grade that counts as relevant.
        judged_only: Leave out unjudged documents, which otherwise count as not relevant.
        top_k: Use only each query's `top_k` best documents; set it if the ranker scored only those.

    Raises:
        InputError: Fewer than `FOLDS` queries in common, only relevant or only irrelevant documents, or an infinite
            score.
    """
    scores, relevant, queries = [], [], []
    shared = sorted(run.keys() & qrels.keys())
    for number, query in enumerate(shared):
        for document in ranked(run[query], top_k):
            score = run[query][document]
            grade = qrels[query].get(document)
            if grade is not None or not judged_only:
                if not math.isfinite(score):
                    raise InputError(f"query {query!r}, document {document!r}: the score {score} cannot be calibrated")
                scores.append(score)
                relevant.append((grade or 0) >= relevance_level)
                queries.append(number)
    if len(set(queries)) < FOLDS:
        raise InputError(f"run and qrels share {len(set(queries))} queries; a calibration needs at least {FOLDS}")
    found = sum(relevant)
    if not 0 < found < len(relevant):
        raise InputError(
            f"{found} of {len(relevant)} documents of the run are relevant; relevant and irrelevant ones are needed"
        )
    return JudgedScores(np.array(scores, dtype=np.float64), np.array(relevant), np.array(queries))


def fit(data: JudgedScores, method: str, normalization: str = "none") -> Calibration:
    """Fits a calibration with scikit-learn.

    Args:
        data: Scores and judgments with at least one relevant and one irrelevant document.
        method: `platt` or `isotonic`.
        normalization: `none` or `zscore`.
    """
    require("sklearn", extra="eval", purpose="Calibration")
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    scores = _normalized(data, normalization)
    if method == "platt":
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(scores[:, None], data.relevant)
        return Calibration(method, normalization, (float(model.coef_[0, 0]), float(model.intercept_[0])))
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, data.relevant)
    return Calibration(method, normalization, tuple(model.X_thresholds_), tuple(model.y_thresholds_))


def held_out(data: JudgedScores, method: str, normalization: str = "none") -> np.ndarray:
    """Cross-validated probabilities `(n,)`: each query's calibration is fitted on the queries of the other folds."""
    require("sklearn", extra="eval", purpose="Calibration")
    from sklearn.model_selection import GroupKFold

    result = np.empty_like(data.scores)
    for kept, left in GroupKFold(FOLDS).split(data.scores, data.relevant, data.queries):
        if not 0 < data.relevant[kept].sum() < len(kept):
            raise InputError("too few relevant documents for cross-validation; provide more judged queries")
        part = JudgedScores(data.scores[kept], data.relevant[kept], data.queries[kept])
        calibration = fit(part, method, normalization)
        scores = _normalized(data, normalization)[left]
        result[left] = replace(calibration, normalization="none").probabilities(scores)
    return result


def _normalized(data: JudgedScores, normalization: str) -> np.ndarray:
    result = np.empty_like(data.scores)
    for number in np.unique(data.queries):
        own = data.queries == number
        result[own] = normalized(data.scores[own], normalization)
    return result


def quality(probabilities: np.ndarray, relevant: np.ndarray) -> Quality:
    """Expected calibration error, Brier score and bins of probabilities `(n,)` against judgments `(n,)`."""
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = [places == place for place in range(BINS) if (places == place).any()]
    rows = [(int(one.sum()), float(probabilities[one].mean()), float(relevant[one].mean())) for one in bins]
    error = sum(count * abs(mean - share) for count, mean, share in rows) / len(relevant)
    return Quality(float(error), float(np.mean((probabilities - relevant) ** 2)), tuple(rows))


def plot_reliability(path: Path, curves: dict[str, Quality]) -> None:
    """Plots the fraction of relevant documents against the mean probability of each bin, one line per curve."""
    from modeling_tsarank.eval.plots import new_figure, save_figure

    figure, axes = new_figure(width=5.0, height=5.0)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    for name, one in curves.items():
        axes.plot([row[1] for row in one.bins], [row[2] for row in one.bins], marker="o", label=name)
    axes.set(xlabel="mean probability", ylabel="share of relevant documents", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    save_figure(figure, path)


def run_calibrate(args: argparse.Namespace) -> int:
    """`tsarank calibrate`: fits a calibration, measures it, and writes the file and a report."""
    run, qrels = read_run(args.run_file, args.run_format), read_qrels(args.qrels)
    data = judged_scores(run, qrels, args.relevance_level, args.judged_only, args.top_k)
    warn_of_few_queries(len(np.unique(data.queries)), "the calibration")
    results = {"before": quality(1 / (1 + np.exp(-np.clip(data.scores, -700, 700))), data.relevant)}
    for method in METHODS if args.method == "best" else (args.method,):
        results[method] = quality(held_out(data, method, args.normalize), data.relevant)
    chosen = min((name for name in results if name != "before"), key=lambda name: results[name].brier)
    calibration = replace(
        fit(data, chosen, args.normalize),
        origin={
            "queries": len(np.unique(data.queries)),
            "documents": len(data.scores),
            "relevant": int(data.relevant.sum()),
            "relevance_level": args.relevance_level,
            "judged_only": args.judged_only,
            "held_out": {
                name: {"expected_calibration_error": one.error, "brier": one.brier} for name, one in results.items()
            },
        },
    )
    calibration.save(args.output)
    sys.stdout.write(_report(results, chosen, calibration.origin))
    if args.plot is not None:
        plot_reliability(args.plot, {name: results[name] for name in ("before", chosen)})
    return 0


def _report(results: dict[str, Quality], chosen: str, origin: dict[str, Any]) -> str:
    rows = [[name, f"{one.error:.4f}", f"{one.brier:.4f}"] for name, one in results.items()]
    bins: Sequence[Sequence[str]] = [
        [str(count), f"{mean:.3f}", f"{share:.3f}"] for count, mean, share in results[chosen].bins
    ]
    return (
        f"{origin['documents']} documents of {origin['queries']} queries, {origin['relevant']} of them relevant\n\n"
        + markdown_table(["held-out queries", "calibration error", "Brier score"], rows)
        + f"\n\n{chosen}, by tenths of the probability:\n\n"
        + markdown_table(["documents", "mean probability", "relevant"], bins)
        + "\n"
    )
