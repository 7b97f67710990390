"""The files that one evaluated collection leaves: metrics, per-query values, and the plot of gains."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.fusion import hash_qrels
from modeling_tsarank.eval.metrics import MetricResult
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.plots import plot_gains
from modeling_tsarank.eval.reports import Row, measure_title
from modeling_tsarank.eval.types import Qrels
from modeling_tsarank.files.versions import installed_version
from modeling_tsarank.files.writing import write_csv, write_json


_PACKAGES = ("tsarank", "torch", "transformers", "pytrec-eval-terrier", "bm25s", "numpy")


@dataclass(frozen=True)
class DatasetResult:
    """One evaluated collection.

    Attributes:
        name: The collection.
        folder: Where its files are.
        queries: Evaluated queries.
        pairs: Scored pairs.
        first: Measures of the first stage.
        reranked: Measures of the reranker alone, over the first stage's `top_k`.
        fused: Measures of the mixed scores, or None.
    """

    name: str
    folder: Path
    queries: int
    pairs: int
    first: MetricResult
    reranked: MetricResult
    fused: MetricResult | None

    def row(self) -> Row:
        """The dataset's row of the papers' tables."""
        fused = None if self.fused is None else self.fused.aggregate
        return Row(self.name, self.queries, self.first.aggregate, self.reranked.aggregate, fused)

    @property
    def final(self) -> MetricResult:
        """Measures of what `run.trec` holds: the mixed scores where there are any, else the reranker's."""
        return self.reranked if self.fused is None else self.fused


@dataclass(frozen=True)
class Session:
    """How one call of the evaluation ran.

    Attributes:
        processes: Number of processes.
        seconds: Wall time from start to measures.
    """

    processes: int
    seconds: float


def system_names(model: str, options: EvaluationOptions) -> list[str]:
    """Names of the compared systems, in the order of `Row.systems`."""
    names = [options.first_stage_name, model]
    if options.fusion is not None:
        names.append(f"{model} + {options.fusion.weight:g} x {options.first_stage_name}")
    return names


def write_dataset_files(
    result: DatasetResult,
    options: EvaluationOptions,
    settings: dict[str, Any],
    records: Sequence[Mapping[str, Any]],
    qrels: Qrels,
    session: Session,
) -> None:
    """Writes `metrics.json`, `per_query.csv` and `gain.png` into the dataset's folder.

    Args:
        result: The measures.
        options: What was evaluated.
        settings: The recorded settings of the scores.
        records: What was logged of each block, for times, tokens and devices of all sessions that scored.
        qrels: Judgments of the evaluated queries.
        session: How this session ran.
    """
    write_json(result.folder / "metrics.json", _metrics(result, options, settings, records, qrels, session))
    _write_per_query(result, options.measures)
    main = options.measures[0]
    plot_gains(
        result.folder / "gain.png",
        [values[main] - result.first.per_query[query_id][main] for query_id, values in result.final.per_query.items()],
        measure_title(main),
        result.name,
        system_names(settings["model"], options)[-1],
        options.first_stage_name,
    )


def _metrics(
    result: DatasetResult,
    options: EvaluationOptions,
    settings: dict[str, Any],
    records: Sequence[Mapping[str, Any]],
    qrels: Qrels,
    session: Session,
) -> dict[str, Any]:
    seconds = sum(record["seconds"] for record in records)
    return {
        **settings,
        "queries": result.queries,
        "pairs": result.pairs,
        # Wall time of the session that wrote this; scoring time is summed over all processes and resumed sessions.
        "wall_seconds": round(session.seconds, 3),
        "scoring_seconds": round(seconds, 3),
        "pairs_per_second_and_process": round(result.pairs / seconds, 3) if seconds else None,
        "model_calls": total([record.get("calls") for record in records]),
        "unusable_answers": total([record.get("unusable") for record in records]),
        "tokens": total([record.get("tokens") for record in records]),
        "cut_documents": total([record.get("cut_documents") for record in records]),
        "cut_queries": total([record.get("cut_queries") for record in records]),
        "devices": sorted({record["device"] for record in records}),
        "dtypes": sorted({record["dtype"] for record in records}),
        "processes": session.processes,
        "cpu": _cpu_name(),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}},
        "qrels_hash": hash_qrels(qrels),
        "fusion": _describe_fusion(options),
        "measures": {
            "first_stage": result.first.aggregate,
            "reranked": result.reranked.aggregate,
            "fused": None if result.fused is None else result.fused.aggregate,
        },
    }


def total(counts: Sequence[int | None]) -> int | None:
    """The sum of what all blocks tell; None where one does not."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _describe_fusion(options: EvaluationOptions) -> dict[str, Any] | None:
    if options.fusion is None:
        return None
    return {
        "formula": "(1 - weight) * reranker + weight * first stage, both normalized per query over the reranked top k",
        "weight": options.fusion.weight,
        "normalization": options.fusion.normalization,
        "tuned_on": options.fusion.qrels_hash,
    }


def _write_per_query(result: DatasetResult, measures: Sequence[str]) -> None:
    systems = [("first_stage", result.first), ("reranked", result.reranked)]
    if result.fused is not None:
        systems.append(("fused", result.fused))
    header = ["query_id", *(f"{name} {measure}" for measure in measures for name, _ in systems), f"gain {measures[0]}"]
    rows = []
    for query_id, first in result.first.per_query.items():
        values = [system.per_query[query_id][measure] for measure in measures for _, system in systems]
        gain = result.final.per_query[query_id][measures[0]] - first[measures[0]]
        rows.append([query_id, *(f"{value:.6f}" for value in values), f"{gain:.6f}"])
    write_csv(result.folder / "per_query.csv", header, rows)


def _cpu_name() -> str:
    """The processor's model name where Linux tells it, else what Python knows."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
