"""Fixtures: tiny random models of every supported architecture, with real trained tokenizers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)


_SENTENCES = [
    "Document: The harbour pilot climbs aboard every ship before it enters the channel. Query: who guides a ship",
    "Document: Bread dough rises because yeast turns sugar into gas. Query: why does bread rise in the oven",
    "Document: A glacier carries stones for many miles and leaves them in a moraine. Query: what is a moraine",
    "Document: Bees dance to tell each other where the flowers are. Query: how do bees talk",
    "Query: why does bread rise Document: yeast makes gas Relevant: true",
    "Query: why does bread rise Document: ships need pilots Relevant: false",
    "The strings of a violin are tuned in fifths, and the bow draws the tone. Relevant: true Relevant: false",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def byte_level_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's; with `bos`, one that puts a BOS in front as Llama's and Gemma's do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES * 20, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's control tokens, in which each answer is one token, as in Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["yes", "no", "Yes", "No", "true", "false"]
    texts = [f"{word}\n{word} {word}" for word in words] + ["system\nJudge whether the Document meets the Query"]
    tokenizer.train_from_iterator(texts * 30, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def make_chat_model(chat_tokenizer: Any) -> Callable[..., Any]:
    """Makes a random Qwen3 whose scores differ visibly, in float32."""

    def make(context: int) -> Any:
        torch.manual_seed(3)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        heads = {"num_key_value_heads": 2, "head_dim": 8}
        model = AutoModelForCausalLM.from_config(
            Qwen3Config(vocab_size=len(chat_tokenizer), max_position_embeddings=context, **sizes, **heads)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return make


def sentence_piece_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with T5's habits: a dummy leading space, an EOS at the end, true/false as one piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES * 20, trainer)
    # T5's vocabulary has both answers whole; so small a training text does not yield them by itself.
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    whole = [(piece, score) for piece, score in pieces if piece not in ("▁true", "▁false")]
    tokenizer.model = models.Unigram([*whole, ("▁true", -1.0), ("▁false", -1.0)], unk_id=2)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<extra_id_10>"]})
    return fast


def _configs(vocabulary: int) -> dict[str, Any]:
    common: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
    grouped = {**sizes, "num_key_value_heads": 2}
    return {
        "llama": LlamaConfig(**common, **grouped),
        "qwen2": Qwen2Config(**common, **grouped),
        "qwen3": Qwen3Config(**common, **grouped, head_dim=8),
        "bloom": BloomConfig(**common, hidden_size=32, n_layer=2, n_head=4),
        "gpt_neox": GPTNeoXConfig(**common, **sizes),
        "opt": OPTConfig(
            **common,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            word_embed_proj_dim=32,
        ),
        "gpt2": GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=512),
        "gemma": GemmaConfig(**common, **grouped, head_dim=8),
        "gemma2": Gemma2Config(**common, **grouped, head_dim=8, final_logit_softcapping=5.0, sliding_window=16),
        "mixtral": MixtralConfig(**common, **grouped, num_local_experts=4, num_experts_per_tok=2),
    }


ARCHITECTURES = ["llama", "qwen2", "qwen3", "bloom", "gpt_neox", "opt", "gpt2", "gemma", "gemma2", "mixtral"]
# What the family's real tokenizers do by themselves.
WITH_BOS = {"llama", "gemma", "gemma2", "opt"}


@dataclasses.dataclass
class Zoo:
    """Folders of plain tiny models, by architecture, and a way to load them."""

    folders: dict[str, Path]

    def causal(self, name: str, dtype: torch.dtype = torch.float32) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folders[name], dtype=dtype).eval()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Plain models saved as ordinary folders: ten decoder-only architectures and a T5."""
    root = tmp_path_factory.mktemp("zoo")
    tokenizers = {bos: byte_level_tokenizer(bos) for bos in (False, True)}
    folders = {}
    for name, config in _configs(len(tokenizers[True])).items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        _sharpen(model)
        folders[name] = root / name
        model.save_pretrained(folders[name])
        tokenizers[name in WITH_BOS].save_pretrained(folders[name])
    piece = sentence_piece_tokenizer()
    torch.manual_seed(7)
    t5 = AutoModelForSeq2SeqLM.from_config(
        T5Config(
            vocab_size=len(piece),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    _sharpen(t5)
    folders["t5"] = root / "t5"
    t5.save_pretrained(folders["t5"])
    piece.save_pretrained(folders["t5"])
    return Zoo(folders)


def _sharpen(model: torch.nn.Module) -> None:
    """Random initial weights are so small that every score is nearly uniform; larger ones make errors visible."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "embed" not in name else 8.0)


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str]]:
    """Pairs of uneven length; documents and queries occur in several pairs."""
    queries = ["why does bread rise", "who guides a ship into the harbour", "bees?"]
    documents = [
        "Bread dough rises because yeast turns sugar into gas.",
        " ".join(["The harbour pilot climbs aboard every ship before it enters the narrow channel."] * 4),
        "Bees",
        "Grüße aus Köln: 42 % naïve 漢字 text.",
    ]
    return [(query, document) for query in queries for document in documents] + [(queries[2], "only once here")]


@pytest.fixture(scope="session")
def default_folder() -> Path:
    """The embedded default model, out of the registry's wheel."""
    from modeling_tsarank.models.default_model import default_model_folder

    return default_model_folder()


@pytest.fixture(scope="session")
def run_command() -> Callable[..., Any]:
    """Runs `tsarank ARGUMENTS` in a process of its own."""
    from modeling_tsarank.cli import main

    def run(*arguments: str, stdin: str | bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return forked.run(lambda: main(arguments), {**os.environ, **environment}, stdin=data)

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def count_tokens() -> Callable[[Any], list[int]]:
    """Makes a model note the tokens of every forward pass of its backbone; the list that it notes them in."""

    def start(model: Any) -> list[int]:
        read: list[int] = []
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
        return read

    return start
