"""NumPy's numbers are numbers wherever one can be given, and end as Python's: settings are written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.eval.fusion import tune_fusion
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.significance import compare_runs
from modeling_tsarank.jobs.bulk_scoring import BulkJob
from modeling_tsarank.modeling_tsarank import QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_scoring import check_batch_tokens
from modeling_tsarank.scores.fusion import FusionSetting


RUN = {"1": {"a": 1.0, "b": 2.0}, "2": {"a": 2.0, "b": 1.0}}
QRELS = {"1": {"a": 1}, "2": {"a": 1}}


def _training_arguments(**values: Any) -> Any:
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig

    return RankingDistillConfig(output_dir="unused", use_cpu=True, **values)


def _cpt_arguments(**values: Any) -> Any:
    from modeling_tsarank.trainers.cpt_config import CPTConfig

    return CPTConfig(output_dir="unused", use_cpu=True, **values)


def _from_data(name: str, **fixed: Any) -> Callable[[str], Callable[[Any], Any]]:
    def of(field: str) -> Callable[[Any], Any]:
        def make(value: Any) -> Any:
            from modeling_tsarank.rankers import listwise
            from modeling_tsarank.trainers.data import query_generation, weak_recipe

            modules = (listwise, query_generation, weak_recipe)
            made = next(getattr(module, name) for module in modules if hasattr(module, name))
            return asdict(made(**fixed, **{field: value}))

        return make

    return of


def _losses(name: str) -> Callable[[Any], Any]:
    def of(value: Any) -> Any:
        from modeling_tsarank.trainers import losses_listwise, losses_targets

        scores, labels = torch.tensor([[0.5, 0.2, 0.1]]), torch.tensor([[0.0, 1.0, 2.0]])
        function = getattr(losses_listwise, name, None) or getattr(losses_targets, name)
        return function(scores, labels, k=value).item()

    return of


PLACES: dict[str, Callable[[Any], Any]] = {
    "options max_length": lambda n: LogitOptions(max_length=n, max_query_length=2).to_dict(),
    "options max_query_length": lambda n: QueryLikelihoodOptions(max_query_length=n).to_dict(),
    "batch_tokens": lambda n: check_batch_tokens(n, torch.device("cpu")),
    "job shard_pairs": lambda n: asdict(BulkJob(("pairs",), "out", shard_pairs=n)),
    "job batch_tokens": lambda n: asdict(BulkJob(("pairs",), "out", batch_tokens=n)),
    "memory store": lambda n: MemoryStore(max_bytes=n)._states.max_bytes,
    "evaluation top_k": lambda n: asdict(EvaluationOptions(top_k=n)),
    "evaluation depth": lambda n: asdict(EvaluationOptions(top_k=1, depth=n)),
    "evaluation limit_queries": lambda n: asdict(EvaluationOptions(limit_queries=n)),
    "evaluation block_pairs": lambda n: asdict(EvaluationOptions(block_pairs=n)),
    "tune_fusion steps": lambda n: tune_fusion(RUN, RUN, QRELS, steps=n).weights,
    "compare_runs resamples": lambda n: asdict(compare_runs(RUN, RUN, QRELS, resamples=n)),
    "training top_blocks": lambda n: _training_arguments(top_blocks=n).to_dict(),
    "training max_length": lambda n: _training_arguments(max_length=n).to_dict(),
    "training max_query_length": lambda n: _training_arguments(max_query_length=n).to_dict(),
    "CPT max_length": lambda n: _cpt_arguments(max_length=n, max_query_length=1).to_dict(),
    "CPT max_query_length": lambda n: _cpt_arguments(max_query_length=n).to_dict(),
    "CPT lora_r": lambda n: _cpt_arguments(lora_r=n).to_dict(),
    **{
        f"generation {name}": _from_data("SamplingOptions")(name)
        for name in ("top_k", "max_new_tokens", "per_passage", "max_passage_tokens", "batch_size", "seed")
    },
    "listwise window": _from_data("ListwiseOptions")("window"),
    "listwise step": _from_data("ListwiseOptions", window=9)("step"),
    "listwise passage_words": _from_data("ListwiseOptions")("passage_words"),
    "listwise attempts": _from_data("ListwiseOptions")("attempts"),
    "sampling rows": _from_data("Sampling")("rows"),
    "sampling validation": _from_data("Sampling")("validation"),
    "LambdaRank k": _losses("lambdarank_loss"),
    "in-batch nDCG k": _losses("in_batch_ndcg"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_numpy_integer_is_the_same_number_and_a_boolean_is_none(place: str) -> None:
    make = PLACES[place]
    expected = json.dumps(make(3), default=str)
    for value in (np.int64(3), np.int32(3), np.uint8(3)):
        assert json.dumps(make(value), default=_no_number) == expected
    for wrong in (True, np.True_, 3.5, np.float64(3.0), "3"):
        with pytest.raises(InputError, match="whole number"):
            make(wrong)


def _no_number(value: Any) -> str:
    assert not isinstance(value, np.generic), f"{value!r} was left a NumPy scalar"
    return str(value)


@pytest.mark.parametrize("name", ["max_disk_bytes", "max_memory_bytes", "shard_bytes"])
def test_bounds_of_a_store_may_be_numpy_integers(tmp_path, name) -> None:
    with FolderStore(tmp_path, **{name: np.int64(1 << 20)}) as store:
        assert type(getattr(store, name)) is int
    with pytest.raises(InputError, match="whole number"):
        FolderStore(tmp_path, **{name: True})


def test_numpy_floats_are_weights_labels_and_temperatures() -> None:
    from modeling_tsarank.trainers.rows import read_numbers

    assert type(FusionSetting(np.float32(0.5)).weight) is float
    assert read_numbers({"labels": [np.int64(1), np.float32(0.5), 2]}, "labels") == [1.0, 0.5, 2.0]
    assert type(_training_arguments(temperature=np.float32(0.5)).temperature) is float
    with pytest.raises(InputError):
        read_numbers({"labels": [np.True_]}, "labels")
