"""Every architecture of transformers scores exactly in every way, is not cached, or is refused, saying why."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from architecture_zoo import DECODERS, ENCODER_DECODERS, FAMILIES, TOLERANCE, outcome
from transformers import AutoTokenizer


# One of each kind: grouped heads, learned positions, ALiBi, renamed attention, sliding windows, experts, recurrent,
# hybrid, latent attention, ignored caches, encoders, cross-attention.
A_DOZEN = ("llama", "gpt2", "bloom", "falcon", "mistral", "gemma2", "mixtral", "mamba", "lfm2", "deepseek_v3")
A_DOZEN += ("openai-gpt", "bert", "xlnet", "moss_transcribe_diarize")
FOUR_MORE = ("bart", "t5", "mt5", "pegasus")
REFUSED = {"bert", "xlnet"}
ALL = [(model_type, False) for model_type in DECODERS] + [(model_type, True) for model_type in ENCODER_DECODERS]
HEAD = """\
# Architectures

What the two families of language models make of a small random model of every architecture that transformers {version}
names a causal or an encoder-decoder language model. Scores of pairs alone, in batches, behind shared documents, saved
and loaded, and from cached document states equal those of transformers alone, pair by pair, to
{tolerance:g} in float32.

- *cached*: all of that.
- *not cached*: the scores are as exact, but documents' states cannot be cached, for the layers named: prefix
  sharing needs full attention. *cache*: the model gives other results with a KV cache than for the whole text.
  *encoder-decoder*: the encoder encodes query and document together.
- *refused*: with one line that says why. *encoder*: bidirectional attention, so the model is neither decoder-only
  nor an encoder-decoder.
- *not tried*: transformers makes no small model of it from sizes alone.

Made by `TSARANK_ZOO_TABLE=docs/architectures.md pytest -m slow tests/modeling_tsarank/test_architecture_zoo.py`.

| architecture | {families} |
|---|---|---|
"""


@pytest.fixture(scope="module")
def tokenizers(zoo: Any) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(zoo.folders["gpt2"]), AutoTokenizer.from_pretrained(zoo.folders["t5"])


@pytest.mark.parametrize("model_type", [*A_DOZEN, *FOUR_MORE])
def test_some_of_every_kind(model_type: str, tokenizers: tuple[Any, Any]) -> None:
    for family, found in outcome(model_type, model_type in FOUR_MORE, tokenizers).items():
        assert not found.startswith("WRONG"), f"{family}: {found}"
        assert found.startswith("refused") == (model_type in REFUSED), f"{family}: {found}"


@pytest.mark.slow
def test_every_architecture(tokenizers: tuple[Any, Any]) -> None:
    """Writes docs/architectures.md to the file that TSARANK_ZOO_TABLE names, if it names one."""
    rows, wrong = [], []
    for model_type, encoder_decoder in ALL:
        try:
            found = outcome(model_type, encoder_decoder, tokenizers)
        except ValueError as error:  # transformers makes no small model of this type
            found = dict.fromkeys(FAMILIES[encoder_decoder:], f"not tried: {error}")
        wrong += [f"{model_type}, {family}: {text}" for family, text in found.items() if text.startswith("WRONG")]
        rows.append(table_row(model_type, encoder_decoder, found))
    if "TSARANK_ZOO_TABLE" in os.environ:
        head = HEAD.format(version=transformers.__version__, tolerance=TOLERANCE, families=" | ".join(FAMILIES))
        Path(os.environ["TSARANK_ZOO_TABLE"]).write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    assert not wrong, "\n".join(wrong)


# What the legend says once.
SHORTER = (
    (r"refused: this \S+ model is an encoder,.*", "refused: encoder"),
    (r"refused: .*Unrecognized configuration class.*", "refused: transformers has no class for it"),
    (r"not cached: .*prefix sharing needs full attention, and layers of \S+ have (.*)", r"not cached: \1"),
    (r"not cached: .*gives other results with a KV cache.*", "not cached: cache"),
    (r"not cached: .*is an encoder-decoder, which.*", "not cached: encoder-decoder"),
    (r"not tried: .*", "not tried"),
    (r"(the|no) document states .*?can(not)? be cached: ", ""),
)


def table_row(model_type: str, encoder_decoder: bool, found: dict[str, str]) -> str:
    texts = [re.sub(r"(?<= )/tmp/\S+(?=:)", "FOLDER", found.get(family, "")) for family in FAMILIES]
    for pattern, short in SHORTER:
        texts = [re.sub(pattern, short, text, flags=re.DOTALL) for text in texts]
    cells = [" ".join(text.replace("|", "/").split()) for text in texts]
    return f"| {model_type}{' (encoder-decoder)' if encoder_decoder else ''} | {' | '.join(cells)} |"
