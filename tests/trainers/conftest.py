"""Fixtures of the training room: tiny random rankers of both families, and a small set that can be learned."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
)

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel


TOPICS = {
    "harbour": ["pilot", "ship", "channel", "anchor", "tide", "quay"],
    "kitchen": ["bread", "yeast", "oven", "dough", "flour", "salt"],
    "glacier": ["moraine", "ice", "valley", "stone", "snow", "melt"],
    "garden": ["bee", "flower", "hive", "pollen", "honey", "seed"],
}
TRUNK_BLOCKS, BLOCKS = 2, 4


def _sentences() -> list[str]:
    words = [word for topic in TOPICS.values() for word in topic]
    texts = [f"Document: {a} {b} Query: {b} {a}" for a, b in zip(words, reversed(words), strict=True)]
    return [*texts, "Query: bread Document: yeast Relevant: true", "Query: ship Document: bee Relevant: false"]


def _causal_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences() * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for text in _sentences() for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def _causal_config(name: str, vocabulary: int, **changes: Any) -> Any:
    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if name == "bloom":
        return BloomConfig(**common, hidden_size=32, n_layer=BLOCKS, n_head=4, **changes)
    if name == "gpt2":
        return GPT2Config(**common, n_embd=32, n_layer=BLOCKS, n_head=4, n_positions=256, **changes)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return (
        Qwen3Config(**common, **sizes, head_dim=8, **changes)
        if name == "qwen3"
        else LlamaConfig(**common, **sizes, **changes)
    )


def _sharpened(model: Any) -> Any:
    """Larger weights than the usual initial ones, whose scores would nearly be equal."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0 if "embed" in name or "shared" in name or "wte" in name else 4.0)
    return model


@pytest.fixture(scope="session")
def causal_tokenizer() -> PreTrainedTokenizerFast:
    return _causal_tokenizer()


@pytest.fixture(scope="session")
def t5_tokenizer() -> PreTrainedTokenizerFast:
    return _t5_tokenizer()


@pytest.fixture(scope="session")
def make_ranker(causal_tokenizer: Any, t5_tokenizer: Any) -> Callable[..., Any]:
    """Makes a fresh ranker, always with the same weights: "tsarank", "twolar" (decoder-only) or "twolar_t5"."""

    def make(
        kind: str = "tsarank",
        architecture: str = "llama",
        dtype: torch.dtype = torch.float32,
        sharpen: bool = True,
        **changes: Any,
    ) -> Any:
        torch.manual_seed(5)
        if kind == "twolar_t5":
            config = T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=BLOCKS,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
                pad_token_id=0,
                eos_token_id=1,
                **changes,
            )
            model, tokenizer = AutoModelForSeq2SeqLM.from_config(config), t5_tokenizer
        else:
            config = _causal_config(architecture, len(causal_tokenizer), **changes)
            model, tokenizer = AutoModelForCausalLM.from_config(config), causal_tokenizer
        family = TSARankModel if kind == "tsarank" else TwolarModel
        model = _sharpened(model) if sharpen else model
        return family.from_backbone(model.to(dtype), tokenizer=tokenizer, max_length=120, max_query_length=30)

    return make


def _text(generator: random.Random, topic: str, words: int) -> str:
    return " ".join(generator.choice(TOPICS[topic]) for _ in range(words))


@pytest.fixture(scope="session")
def sft_rows() -> list[dict[str, Any]]:
    """24 queries, each with two positives of its topic and five negatives of others; documents of uneven length."""
    generator = random.Random(1)
    rows = []
    for i in range(24):
        topic = list(TOPICS)[i % len(TOPICS)]
        others = [name for name in TOPICS if name != topic]
        negatives = [_text(generator, generator.choice(others), generator.randint(2, 12)) for _ in range(5)]
        positives = [_text(generator, topic, generator.randint(2, 12)) for _ in range(2)]
        query = _text(generator, topic, generator.randint(1, 4))
        rows.append({"query": query, "positives": positives, "negatives": negatives})
    return rows


@pytest.fixture(scope="session")
def distill_rows(sft_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same queries with a teacher's order, scores and grades over three to seven documents."""
    generator = random.Random(2)
    rows = []
    for i, row in enumerate(sft_rows):
        documents = [*row["positives"], *row["negatives"]][: 3 + i % 5]
        grades = [1.0 if document in row["positives"] else 0.0 for document in documents]
        scores = [grade * 3 + generator.uniform(-1, 1) for grade in grades]
        order = sorted(range(len(documents)), key=lambda place: -scores[place])
        shuffled = list(range(len(documents)))
        generator.shuffle(shuffled)
        place = {document: new for new, document in enumerate(shuffled)}
        rows.append(
            {
                "query": row["query"],
                "documents": [documents[old] for old in shuffled],
                "permutation": [place[old] for old in order],
                "teacher_scores": [scores[old] for old in shuffled],
                "labels": [grades[old] for old in shuffled],
            }
        )
    return rows


@pytest.fixture
def make_trainer(
    make_ranker: Callable[..., Any], sft_rows: list[Any], distill_rows: list[Any], tmp_path: Any
) -> Callable[..., Any]:
    """Makes a trainer on the small set: `make_trainer("sft", rows=…, ranker=…, trainable="lora", …)`."""
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    def make(kind: str, rows: Any = None, ranker: Any = None, eval_rows: Any = None, **changes: Any) -> Any:
        common = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "disable_tqdm": True,
            "top_blocks": BLOCKS - TRUNK_BLOCKS,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        if kind == "sft":
            config, trainer, default = RankingSFTConfig, RankingSFTTrainer, sft_rows
            common |= {"num_negatives": 3, "score_form": "mean_log_prob", "temperature": 0.1, "max_length": 120}
        else:
            config, trainer, default = RankingDistillConfig, RankingDistillTrainer, distill_rows
        ranker = make_ranker("tsarank" if kind == "sft" else "twolar") if ranker is None else ranker
        args = config(**{**common, **changes})
        return trainer(ranker, args, default if rows is None else rows, eval_dataset=eval_rows)

    return make


@pytest.fixture(scope="session")
def first_batch() -> Callable[..., Any]:
    """The batch of a trainer's first rows, as its data loader would give it."""

    def batch(trainer: Any, count: int = 4, start: int = 0) -> Any:
        groups = [trainer.train_dataset[i] for i in range(start, start + count)]
        return trainer.data_collator(groups)

    return batch


@pytest.fixture(scope="session")
def perturb() -> Callable[..., None]:
    """Moves the trained weights away from where they start, so that no gradient is 0 by construction."""

    def move(trainer: Any, size: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))

    return move


@pytest.fixture(scope="session")
def gradients() -> Callable[..., dict[str, torch.Tensor]]:
    """Copies of the trained parameters' gradients by name, which are then cleared."""

    def collect(trainer: Any) -> dict[str, torch.Tensor]:
        found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.model.zero_grad()
        return found

    return collect
