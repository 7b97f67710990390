"""Every architecture of transformers scores exactly in every way, is not cached, or is refused, saying why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from architecture_zoo import DECODERS, ENCODER_DECODERS, outcome
from transformers import AutoTokenizer


# One of each kind: grouped heads, learned positions, ALiBi, renamed attention, sliding windows, experts, recurrent,
# hybrid, latent attention, ignored caches, encoders, cross-attention.
A_DOZEN = ("llama", "gpt2", "bloom", "falcon", "mistral", "gemma2", "mixtral", "mamba", "lfm2", "deepseek_v3")
A_DOZEN += ("openai-gpt", "bart", "bert", "t5", "mt5", "pegasus")
REFUSED = {"bert"}
ALL = tuple(dict.fromkeys((*DECODERS, *ENCODER_DECODERS)))


@pytest.fixture(scope="module")
def tokenizers(zoo: Any) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(zoo.folders["gpt2"]), AutoTokenizer.from_pretrained(zoo.folders["t5"])


@pytest.mark.parametrize("model_type", A_DOZEN)
def test_a_dozen_architectures(model_type: str, tokenizers: tuple[Any, Any]) -> None:
    for family, found in outcome(model_type, tokenizers).items():
        assert not found.startswith("WRONG"), f"{family}: {found}"
        assert found.startswith("refused") == (model_type in REFUSED), f"{family}: {found}"


@pytest.mark.slow
def test_every_architecture(tokenizers: tuple[Any, Any]) -> None:
    """Writes the table of docs/architectures.md to the file that TSARANK_ZOO_TABLE names, if it names one."""
    rows, wrong = [], []
    for model_type in ALL:
        try:
            found = outcome(model_type, tokenizers)
        except ValueError as error:  # transformers makes no small model of this type
            found = dict.fromkeys(("query_likelihood", "true_false_logits"), f"not tried: {error}".replace("\n", " "))
        wrong += [f"{model_type}, {family}: {text}" for family, text in found.items() if text.startswith("WRONG")]
        cells = [found.get(family, "") for family in ("query_likelihood", "true_false_logits")]
        rows.append(f"| {model_type} | {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    if "TSARANK_ZOO_TABLE" in os.environ:
        Path(os.environ["TSARANK_ZOO_TABLE"]).write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert not wrong, "\n".join(wrong)
