"""The result files of one evaluated collection: measures and per-query values."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.fusion import hash_qrels
from modeling_tsarank.eval.metrics import MetricResult
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.reports import Row
from modeling_tsarank.eval.types import Qrels
from modeling_tsarank.files.versions import cpu_name, installed_version
from modeling_tsarank.files.writing import write_csv, write_json


_PACKAGES = ("tsarank", "torch", "transformers", "pytrec-eval-terrier", "bm25s", "numpy")
_COUNTS = {
    "model_calls": "calls",
    "unusable_answers": "unusable",
    **{name: name for name in ("tokens", "cut_documents", "cut_queries")},
}


@dataclass(frozen=True)
class DatasetResult:
    """One evaluated collection.

    Attributes:
        name: The collection.
        folder: Where its files are.
        queries: Evaluated queries.
        pairs: Scored pairs.
        systems: Measures of `first_stage`, of `reranked`, the reranker alone over the first stage's `top_k`, and,
            if scores are fused, of `fused`. The ranking of the last one is in `run.trec`.
    """

    name: str
    folder: Path
    queries: int
    pairs: int
    systems: Mapping[str, MetricResult]

    def row(self) -> Row:
        """The dataset's row of the papers' tables."""
        return Row(self.name, self.queries, [one.aggregate for one in self.systems.values()])


def system_names(model: str, options: EvaluationOptions) -> list[str]:
    """Names of the compared systems, in the order of `DatasetResult.systems`."""
    names = [options.first_stage_name, model]
    if options.fusion is not None:
        names.append(f"{model} + {options.fusion.weight:g} x {options.first_stage_name}")
    return names


def write_dataset_files(
    result: DatasetResult,
    options: EvaluationOptions,
    settings: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    qrels: Qrels,
    processes: int,
    wall_seconds: float,
) -> None:
    """Writes `metrics.json` and `per_query.csv` into the dataset's folder.

    Args:
        result: The measures.
        options: The options of the evaluation.
        settings: The recorded settings of the scores.
        records: The log of each block, for times, tokens and devices of all scoring sessions.
        qrels: Judgments of the evaluated queries.
        processes: Number of processes of this session.
        wall_seconds: Wall time of this session, from start to measures.
    """
    seconds = sum(record["seconds"] for record in records)
    fusion = options.fusion
    metrics = {
        **settings,
        "queries": result.queries,
        "pairs": result.pairs,
        # Wall time is this session's; scoring time is summed over all processes and resumed sessions.
        "wall_seconds": round(wall_seconds, 3),
        "scoring_seconds": round(seconds, 3),
        "pairs_per_second_and_process": round(result.pairs / seconds, 3) if seconds else None,
        **{name: total([record.get(key) for record in records]) for name, key in _COUNTS.items()},
        "devices": sorted({record["device"] for record in records}),
        "dtypes": sorted({record["dtype"] for record in records}),
        "processes": processes,
        "cpu": cpu_name(),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}},
        "qrels_hash": hash_qrels(qrels),
        "fusion": fusion
        and {
            "formula": "(1 - weight) * reranker + weight * first stage, both normalized per query over the reranked "
            "top k",
            "weight": fusion.weight,
            "normalization": fusion.normalization,
            "tuned_on": fusion.qrels_hash,
        },
        "measures": {"fused": None, **{name: one.aggregate for name, one in result.systems.items()}},
    }
    write_json(result.folder / "metrics.json", metrics)
    first, *_, final = [one.per_query for one in result.systems.values()]
    main = options.measures[0]
    header = [f"{name} {measure}" for measure in options.measures for name in result.systems]
    rows = []
    for query_id in first:
        values = [one.per_query[query_id][measure] for measure in options.measures for one in result.systems.values()]
        gain = final[query_id][main] - first[query_id][main]
        rows.append([query_id, *(f"{value:.6f}" for value in (*values, gain))])
    write_csv(result.folder / "per_query.csv", ["query_id", *header, f"gain {main}"], rows)


def total(counts: Sequence[int | None]) -> int | None:
    """The sum over all blocks; None if one has no value."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
