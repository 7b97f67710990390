"""A language model that rankers of lists ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from modeling_tsarank.rankers.labels import LabelModel


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2", "t5"])
def model(request: Any, zoo: Any) -> LabelModel:
    """A random model with room for long prompts, whose answers depend on what it reads."""
    folder = zoo.folders[request.param]
    config = AutoConfig.from_pretrained(folder)
    for name in ("max_position_embeddings", "n_positions"):
        if hasattr(config, name):
            setattr(config, name, 4096)
    torch.manual_seed(3)
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 4)}
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    letters = Tokenizer(models.BPE(vocab={**special, **alphabet}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    config.vocab_size = len(tokenizer)
    made = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    backbone = made.from_config(config).float()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return LabelModel(backbone, tokenizer, request.param, batch_tokens=6000)
