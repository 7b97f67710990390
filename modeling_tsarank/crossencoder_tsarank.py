"""A saved ranker as a `CrossEncoder` of sentence-transformers, and thus for everything that wraps one.

Without a `modules.json`, sentence-transformers would treat a decoder-only ranker as a yes/no model and silently return
wrong scores. With it, a folder loads by `CrossEncoder(folder, trust_remote_code=True)` and gives the scores of
`predict`; without trust it is refused. This file is saved with every checkpoint and needs only torch and transformers:
sentence-transformers requires no base class of its modules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from .ranking_errors import InputError, ModelError
from .ranking_options import whole_number
from .ranking_text import clean_pairs


# Scores are those of `predict`: sentence-transformers would apply a sigmoid by default.
_CONFIG: dict[str, Any] = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
_CONFIG["activation_fn"] = "torch.nn.modules.linear.Identity"


class CrossEncoderRanker(torch.nn.Module):
    """The only module of a ranker's `modules.json`: pairs of texts in, `scores` `(pairs, 1)` out.

    Outside of training, scores come from the model's own `predict`: documents shared by several pairs of a batch are
    encoded once, and memory is bounded. In training, pairs are processed in one padded batch with gradients.
    """

    save_in_root = True
    modalities = ("text",)
    forward_kwargs = ("passages", "passage_length", "passage_stride")  # see `RankerModel.rank`

    def __init__(self, ranker: Any) -> None:
        super().__init__()
        self.ranker = ranker

    @classmethod
    def load(cls, model_name_or_path: str, **given: Any) -> CrossEncoderRanker:
        """Called by sentence-transformers with the arguments of `CrossEncoder`.

        Raises `ModelError` for another backend, `InputError` for an unsupported option.
        """
        if given.get("backend", "torch") != "torch":
            raise ModelError(f"a ranker has no {given['backend']} backend in sentence-transformers; use 'torch'")
        options = {name: given.get(name) for name in ("token", "revision", "local_files_only", "trust_remote_code")}
        options |= {"cache_dir": given.get("cache_folder"), **(given.get("model_kwargs") or {})}
        processor, config = dict(given.get("processor_kwargs") or {}), dict(given.get("config_kwargs") or {})
        length, labels = processor.pop("model_max_length", None), config.pop("num_labels", 1)
        unknown = sorted({*processor, *config} - options.keys())
        if unknown:
            raise InputError(f"{', '.join(unknown)} cannot be set on a ranker; use set_options of `model[0].ranker`")
        if labels != 1:
            raise InputError(f"a ranker returns one score per pair; num_labels must be 1, got {labels}")
        module = cls(AutoModel.from_pretrained(model_name_or_path, **options))
        if length is not None:
            module.max_seq_length = length
        return module

    @property
    def tokenizer(self) -> Any:
        """The ranker's tokenizer."""
        return self.ranker.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.ranker.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens of a sequence, query included; only the document is truncated."""
        return self.ranker.options.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        length = whole_number(length, "max_length", 2)
        query = min(self.ranker.options.max_query_length, length // 2)
        self.ranker.set_options(max_length=length, max_query_length=query)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Pairs unchanged: the model applies its own prompt. Raises `InputError` for a prompt."""
        if prompt:
            raise InputError("a ranker has its own prompt, set by its options; leave out prompt and prompt_name")
        return {"pairs": list(inputs)}

    def forward(self, features: dict[str, Any], **passages: Any) -> dict[str, Any]:
        """Adds `scores`, `(pairs, 1)` float32."""
        ranker, pairs = self.ranker, features["pairs"]
        if torch.is_grad_enabled() and self.training:
            scores = ranker.scores_to_train(ranker.encoder.pairs(clean_pairs(pairs)))
        else:
            scores = torch.from_numpy(ranker.predict(pairs, show_progress=False, **passages)).to(ranker.device)
        return {**features, "scores": scores[:, None]}

    def save(self, output_path: str, *_: Any, **kwargs: Any) -> None:
        """Writes the ranker's folder; sentence-transformers adds its own files."""
        kwargs.pop("safe_serialization", None)
        self.ranker.save_pretrained(output_path, **kwargs)


def code_reference(cls: type) -> str:
    """The name of a class in a saved configuration whose file is in the same folder: `file.Class`."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def write_cross_encoder_files(folder: str | os.PathLike, plain_length: int | None = None) -> None:
    """Writes `modules.json` and `config_sentence_transformers.json`; this module's file is saved with the model's.

    A plain cross-encoder needs neither: its own files set logits as scores and at most `plain_length` tokens.
    """
    files: dict[str, Any] = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": code_reference(CrossEncoderRanker)}],
        "config_sentence_transformers.json": _CONFIG,
    }
    if plain_length is not None:
        added: dict[str, Any] = {"tokenizer_config.json": {"model_max_length": plain_length}}
        added["config.json"] = {"sentence_transformers": {"activation_fn": _CONFIG["activation_fn"]}}
        present = {name: Path(folder, name) for name in added if Path(folder, name).is_file()}
        files = {name: json.loads(path.read_text(encoding="utf-8")) | added[name] for name, path in present.items()}
    for name, value in files.items():
        Path(folder, name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
