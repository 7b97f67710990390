"""Encoders small enough to be made in every test that wants one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bert_config(t5_tokenizer: Any) -> Any:
    """One block of BERT with `t5_tokenizer`'s vocabulary; each test may change its own."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(t5_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=0,
    )


@pytest.fixture
def make_bi_encoder(t5_tokenizer: Any, bert_config: Any) -> Callable[[Path], Path]:
    """Writes a sentence-transformers bi-encoder into a folder's subfolder `bi-encoder` and names that."""

    def make(place: Path) -> Path:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
        from transformers import BertModel

        torch.manual_seed(0)
        BertModel(bert_config).save_pretrained(place / "bert")
        t5_tokenizer.save_pretrained(place / "bert")
        modules = [Transformer(str(place / "bert")), Pooling(16)]
        SentenceTransformer(modules=modules, device="cpu").save(str(place / "bi-encoder"))
        return place / "bi-encoder"

    return make
