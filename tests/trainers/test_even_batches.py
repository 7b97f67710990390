"""Two processes equal one for any number of rows: what fills up the last batches counts for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from process_training import train, train_together
from torch.utils.data import BatchSampler, SequentialSampler

from modeling_tsarank.trainers.even_batches import FilledBatches


COMMON = {
    # Nothing moves, so that the figures of all steps are those of the same weights.
    "learning_rate": 0.0,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_length": 120,
    "max_query_length": 30,
}
RANKING = {**COMMON, "trainable": "lora", "chunk_tokens": 90}
SFT = {**RANKING, "num_negatives": 3, "score_form": "mean_log_prob", "temperature": 0.1}


@pytest.mark.parametrize("rows", range(1, 14))
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_row_comes_once_and_all_processes_get_as_many_batches(rows: int, processes: int, size: int) -> None:
    parts = []
    for process in range(processes):
        filled = FilledBatches(BatchSampler(SequentialSampler(range(rows)), size, False), rows, processes)
        shard = BatchSamplerShard(filled, processes, process)
        parts.append(list(shard))
        assert len(parts[-1]) == len(shard)
    assert len({len(part) for part in parts}) == 1
    assert all(len(batch) == size for part in parts for batch in part)
    taken = [index for part in parts for batch in part for index in batch if index < rows]
    assert sorted(taken) == list(range(rows))


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """What was measured, without the times it took."""
    timed = ("runtime", "per_second", "time", "total_flos", "epoch", "step")
    return {name: value for name, value in record.items() if not any(word in name for word in timed)}


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_equal_one_for_any_number_of_rows(
    count: int,
    make_ranker: Callable[..., Any],
    sft_rows: list[Any],
    distill_rows: list[Any],
    tmp_path: Path,
) -> None:
    """Losses, gradients and every figure of training and evaluation, by Gloo; float32 rounding to 1e-4."""
    pairs = [{"query": row["query"], "document": row["positives"][0]} for row in sft_rows]
    plain = make_ranker("tsarank", sharpen=False)
    plain.backbone.save_pretrained(tmp_path / "cpt")
    plain.tokenizer.save_pretrained(tmp_path / "cpt")
    plain.save_pretrained(tmp_path / "sft")
    make_ranker("twolar_t5", sharpen=False).save_pretrained(tmp_path / "distill")
    cases = [
        ("sft", sft_rows, 13, 13, {**SFT}),
        ("sft", sft_rows, 2, 1, {**SFT}),
        ("distill", distill_rows, 9, 5, {**RANKING, "gradient_accumulation_steps": 2}),
        ("cpt", pairs, 13, 13, {**COMMON}),
        ("cpt", pairs, 5, 3, {**COMMON, "trainable": "lora", "gradient_accumulation_steps": 2}),
        ("cpt", pairs, 13, 13, {**COMMON, "packing": True, "max_length": 60}),
    ]
    for processes in (1, count):
        jobs = []
        for number, (kind, rows, trained, evaluated, config) in enumerate(cases):
            output = tmp_path / f"{processes}-{number}"
            output.mkdir()
            size = 2 * count // processes
            jobs.append(
                {
                    "kind": kind,
                    "folder": str(tmp_path / kind),
                    "rows": rows[:trained],
                    "eval_rows": rows[:evaluated],
                    "config": {**config, "output_dir": str(output), "per_device_train_batch_size": size},
                    "output": str(output),
                }
            )
        if processes == 1:
            for job in jobs:
                train(job)
            continue
        train_together(jobs, count)
    for number, (kind, _, _, _, _) in enumerate(cases):
        one, several = (
            json.loads((tmp_path / f"{processes}-{number}" / "log.json").read_text()) for processes in (1, count)
        )
        assert (one["processes"], several["processes"]) == (1, count)
        assert len(one["log"]) == len(several["log"])
        for expected, found in zip(one["log"], several["log"], strict=True):
            assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-5), (number, kind)
        assert len(numbers(one["evaluation"])) > 1
        assert numbers(several["evaluation"]) == pytest.approx(numbers(one["evaluation"]), rel=1e-4), (number, kind)
