"""Tiny random models with a sequence-classification head of one label, and a tokenizer like BERT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    DebertaV2Config,
    DistilBertConfig,
    FNetConfig,
    FunnelConfig,
    GemmaConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
)


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_ENCODER: dict[str, Any] = {**_SIZES, "vocab_size": 300, "max_position_embeddings": 128, "pad_token_id": 0}
_ENCODER["num_labels"] = 1
_DECODER: dict[str, Any] = {**_SIZES, "vocab_size": 420, "num_key_value_heads": 2, "max_position_embeddings": 512}
_DECODER |= {"pad_token_id": 3, "eos_token_id": 2, "bos_token_id": 1, "num_labels": 1}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**_ENCODER),
    "roberta": lambda: RobertaConfig(**_ENCODER, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128, num_labels=1
    ),
    "deberta-v2": lambda: DebertaV2Config(
        **_ENCODER, type_vocab_size=0, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER, bos_token_id=2, eos_token_id=3, global_attn_every_n_layers=2, local_attention=16
    ),
}
# Scores of these depend on the padding of a batch.
MIXERS: dict[str, Callable[[], Any]] = {
    "fnet": lambda: FNetConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=128
    ),
    "funnel": lambda: FunnelConfig(vocab_size=300, d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1, 1]),
}
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_DECODER),
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=8),
    "gemma": lambda: GemmaConfig(**_DECODER, head_dim=8),
    "bloom": lambda: BloomConfig(
        vocab_size=420, hidden_size=32, n_layer=2, n_head=4, pad_token_id=3, eos_token_id=2, num_labels=1
    ),
}
_TEXTS = [
    "the harbour pilot climbs aboard every ship before it enters the narrow channel",
    "bread dough rises because yeast turns sugar into gas",
    "bees dance to tell each other where the flowers are, and a glacier carries stones",
    "who guides a ship into the harbour? why does bread rise? how do bees talk?",
]


def word_piece_tokenizer(token_types: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that puts [CLS] and [SEP] around a pair; texts of up to 96 tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
        model_max_length=96,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)),
    )


def save_classifier(kind: str, folder: Path, tokenizer_from: Path | None = None, **changes: Any) -> Path:
    """Saves a random model; its scores differ visibly.

    Args:
        kind: one of `ENCODERS`, `DECODERS` or `MIXERS`.
        folder: where to.
        tokenizer_from: a folder with the tokenizer of a decoder.
        changes: of the configuration.
    """
    config = {**ENCODERS, **DECODERS, **MIXERS}[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    if kind not in DECODERS:
        word_piece_tokenizer(token_types=kind in ("bert", "deberta-v2", "fnet")).save_pretrained(folder)
    else:
        AutoTokenizer.from_pretrained(str(tokenizer_from)).save_pretrained(folder)
    return folder
