"""What both model families share: one wrapper around an ordinary backbone, and the verbs `predict` and `rank`."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput

from .crossencoder_tsarank import CrossEncoderRanker, code_reference, write_cross_encoder_files
from .pipeline_text_ranking import TextRankingPipeline
from .ranking_attention import attention_choice, check_attention, refuse_encoder, refuse_flex
from .ranking_calls import evaluating, snapshot
from .ranking_checkpoints import (
    check_vocabulary,
    load_backbone,
    load_complete,
    refuse_shell_of_a_folder,
)
from .ranking_engine import check_batch_tokens, check_finite
from .ranking_errors import InputError, ModelError
from .ranking_options import CONFIG_KEY, Explanation, Family, RankingOptions, whole_number
from .ranking_text import EncodedPair, clean_query, document_list, document_text, encode_counted


logger = logging.getLogger(__name__)

# Options of `from_pretrained` that choose a file rather than a model, and so hold for the tokenizer as well.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


@dataclass
class RankingOutput(ModelOutput):
    """Output of a ranking model's `forward`.

    Attributes:
        loss: scalar, listwise softmax cross-entropy over `scores`; only where `labels` were given.
        scores: `(pairs,)` float32, higher is more relevant.
        token_log_probs: `(query tokens,)` float32, row by row (`TSARankModel` only).
    """

    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    token_log_probs: torch.Tensor | None = None


def group_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of groups of equal size: scores `(groups × size,)`, labels `(groups,)` the index of the
    relevant document in each group (TSARankLLM, Eq. 3 with S = score and tau = 1)."""
    if labels.ndim != 1 or scores.numel() % max(labels.numel(), 1):
        raise InputError(
            f"{scores.numel()} scores cannot be split into {labels.numel()} groups of equal size; labels must "
            "hold one index of the relevant document per group"
        )
    return torch.nn.functional.cross_entropy(scores.view(labels.numel(), -1), labels)


class RankerModel(Family, PreTrainedModel):
    """Base of the ranking models: an ordinary backbone under the prefix `backbone`, a tokenizer, ranking options.

    Its folder on disk is the backbone's own folder, with `auto_map`, the modeling files and the ranking options added,
    so the same folder also loads as a plain language model.
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _auto_class = "AutoModel"

    # What is computed in where that is not the dtype: "int8" with rounded weights, which cannot be saved.
    number_format: str | None = None
    options: RankingOptions

    def __init__(self, config: Any, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.options = self.options_class.from_dict(getattr(config, CONFIG_KEY, None) or {})
        if backbone is None:
            inner = copy.deepcopy(config)
            # The wrapper's choice of attention may be one the backbone refuses: BLOOM knows only eager.
            requested = getattr(config, "_attn_implementation_internal", None)
            inner._attn_implementation_internal = None
            backbone = self.backbone_class(config).from_config(
                inner, dtype=config.dtype, **attention_choice(self.backbone_class(config), inner, requested)
            )
        else:
            # `post_init` draws new weights for every module that is not marked as loaded: LoRA's, for one.
            for module in backbone.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.check_backbone(backbone)
        check_attention(backbone)
        self.backbone = backbone
        self._tokenizer: Any = None
        self._encoder: Any = None
        # What the last `predict` did: pairs, and tokens read by the backbone (a shared document counts once).
        self.last_stats: dict[str, int] = {}
        # What calls leave to the next one: memory, shapes, how many of them are running.
        self.between_calls: dict[str, Any] = {}
        self.post_init()

    def get_correct_experts_implementation(self, requested_experts: str | None) -> Any:
        """What was asked for: experts are in the backbone, which checks it; transformers looks for them here."""
        return requested_experts

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As for every model of transformers. Raises `ModelError` for `flex_attention`."""
        refuse_flex(*attn_implementation.values() if isinstance(attn_implementation, dict) else [attn_implementation])
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    # ---- loading ---------------------------------------------------------------------------------

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        """The auto class that reads the plain model of this family."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Loads a ranking checkpoint, its tokenizer included (`tokenizer=` to give another).

        Raises `ModelError` if the folder is none of this family's, or its weights are not exactly the model's.
        """
        told = kwargs.pop("output_loading_info", False)
        tokenizer = kwargs.pop("tokenizer", None)
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        refuse_shell_of_a_folder(pretrained_model_name_or_path)
        if config is None:
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        model, info = load_complete(
            super().from_pretrained, pretrained_model_name_or_path, *args, config=config, **kwargs
        )
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub)
            check_vocabulary(model, tokenizer)
        model.tokenizer = tokenizer
        model.eval()
        return (model, info) if told else model

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | os.PathLike | PreTrainedModel,
        *,
        gguf_file: str | None = None,
        tokenizer: Any = None,
        dtype: Any = None,
        device: Any = None,
        trust_remote_code: bool = False,
        backbone_options: dict[str, Any] | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Any:
        """Makes a ranker of a plain language model.

        Parameters:
            name_or_path: a Hub id, a folder, a GGUF file, or a model already loaded (then `tokenizer` is needed).
            gguf_file: the GGUF file inside the folder or Hub repository.
            dtype: of the weights; `None` keeps the checkpoint's.
            backbone_options: further arguments of the backbone's own `from_pretrained`.
            options: ranking options (`QueryLikelihoodOptions`, `LogitOptions`) to change. A known published checkpoint
                brings its own; an unknown plain model gets the family's defaults, and a message says so.

        Raises `ModelError` if there is no such model or it is of the wrong kind.
        """
        if isinstance(name_or_path, PreTrainedModel):
            if tokenizer is None:
                raise ModelError("from_backbone was given a loaded model without its tokenizer")
            backbone = name_or_path
        else:
            backbone, loaded_tokenizer = load_backbone(
                name_or_path,
                cls.backbone_class,
                gguf_file=gguf_file,
                tokenizer=tokenizer,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                revision=revision,
                **(backbone_options or {}),
            )
            tokenizer = loaded_tokenizer
        config = copy.deepcopy(backbone.config)
        chosen = cls._starting_options(name_or_path, config).override(**options)
        setattr(config, CONFIG_KEY, chosen.to_dict())
        model = cls(config, backbone=backbone)
        model.tokenizer = tokenizer
        model.name_or_path = str(getattr(backbone, "name_or_path", ""))
        if device is not None:
            model.to(device)
        return model.eval()

    @classmethod
    def check_backbone(cls, backbone: PreTrainedModel) -> None:
        """Raises `ModelError` for what is no language model of this family: no output head, or an encoder."""
        cls.backbone_class(backbone.config)
        if backbone.get_output_embeddings() is None:
            raise ModelError(
                f"{type(backbone).__name__} has no head over the vocabulary; load the checkpoint as a language model, "
                "such as AutoModelForCausalLM"
            )
        refuse_encoder(backbone)

    @classmethod
    def _starting_options(cls, name_or_path: Any, config: Any) -> RankingOptions:
        saved = getattr(config, CONFIG_KEY, None)
        if saved:
            return cls.options_class.from_dict(saved)
        known = cls.published_options(name_or_path) if isinstance(name_or_path, str) else None
        if known is not None:
            return cls.options_class.from_dict(known)
        defaults = cls.options_class()
        name = type(name_or_path).__name__ if isinstance(name_or_path, PreTrainedModel) else name_or_path
        logger.info("%s is not a known reranker: using the defaults of %s: %s", name, cls.__name__, defaults)
        return defaults

    # ---- saving ----------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the backbone's ordinary folder with the ranking options, the modeling files and the tokenizer.

        The result loads by `AutoModel.from_pretrained(folder, trust_remote_code=True)` without this package installed,
        as pipeline and `CrossEncoder`, and as the plain model without trust. `push_to_hub=True` uploads it, privately.
        """
        if self.number_format is not None:
            raise ModelError(f"{self.number_format} weights cannot be saved; save the model that they were made from")
        if os.path.isfile(save_directory):
            raise InputError(f"cannot save to {save_directory}: it is a file, a folder is needed")
        state_dict = kwargs.pop("state_dict", None)
        if state_dict is not None:
            prefix = f"{self.base_model_prefix}."
            kwargs["state_dict"] = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        push = kwargs.pop("push_to_hub", False)
        config = self.backbone.config
        setattr(config, CONFIG_KEY, self.options.to_dict())
        config.auto_map = {"AutoModel": code_reference(type(self))}
        pipeline = code_reference(TextRankingPipeline)
        config.custom_pipelines = {"text-ranking": {"impl": pipeline, "pt": ["AutoModel"], "type": "text"}}
        self.backbone.save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            for part in (self, TextRankingPipeline, CrossEncoderRanker):
                custom_object_save(part, save_directory)
            write_cross_encoder_files(save_directory)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(save_directory)
        if push:
            self._push_folder(save_directory, kwargs.get("repo_id") or Path(save_directory).name, kwargs)

    def _push_folder(self, folder: Any, repo_id: str, kwargs: dict[str, Any]) -> None:
        from huggingface_hub import HfApi

        api = HfApi(token=kwargs.get("token"))
        repo_id = api.create_repo(repo_id, private=kwargs.get("private", True), exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=kwargs.get("commit_message"))

    # ---- the parts a PreTrainedModel forwards to its backbone ------------------------------------

    def get_input_embeddings(self) -> Any:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value: Any) -> None:
        self.backbone.set_output_embeddings(value)

    # ---- text ------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The tokenizer the checkpoint was loaded with. Raises `ModelError` if there is none."""
        if self._tokenizer is None:
            raise ModelError("this ranking model has no tokenizer yet; set `model.tokenizer` to one")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def encoder(self) -> Any:
        """Turns (query, document) texts into token ids as `options` say."""
        made, own = self._encoder, snapshot(self)
        if made is None or made[0] is not own._tokenizer or made[1] is not own.options:
            made = self._encoder = own._tokenizer, own.options, own._make_encoder()
        return made[2]

    def set_options(self, **changes: Any) -> None:
        """Changes ranking options of a loaded model. Raises `InputError` for an unknown field or a bad value."""
        self.options = self.options.override(**changes)
        setattr(self.config, CONFIG_KEY, self.options.to_dict())

    @property
    def pad_id(self) -> int:
        """Any valid id does where masked positions are filled: they are never read."""
        tokenizer, count = self.tokenizer, len(self.get_input_embeddings().weight)
        for value in (getattr(tokenizer, "pad_token_id", None), tokenizer.eos_token_id):
            if value is not None and value < count:
                return value
        return 0

    def _make_encoder(self) -> Any:
        raise NotImplementedError

    def _score_pairs(self, pairs: Sequence[EncodedPair], batch_tokens: int, show: Any, stop: Any) -> list[float]:
        raise NotImplementedError

    # ---- the verbs -------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(
        self,
        pairs: Sequence[tuple[str, Any]] | tuple[str, Any],
        *,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """Scores of (query, document) pairs, in the given order.

        Parameters:
            pairs: (query, document) tuples; a document is a string or a mapping with `text` and optionally `title`.
            batch_tokens: padded tokens of one batch at most (a longer single pair still runs).
            show_progress: `None` shows a bar on a terminal when the work is long.
            stop: asked before every batch; when it answers true, `RankingCancelled` is raised.

        Returns:
            float32 array `(pairs,)`; a single pair gives a 0-dimensional array. Higher is more relevant.

        Raises `InputError` for an empty query or a value of the wrong type, `NonFiniteScoreError` if the model returns
        NaN or infinity, `ResourceError` when memory runs out. An empty document gets a score, and a warning is logged;
        others say how many documents and queries were cut, as `cut_documents` and `cut_queries` of `last_stats` do.
        """
        single = isinstance(pairs, tuple) and len(pairs) == 2 and isinstance(pairs[0], str)
        cleaned = self.check_pairs([pairs] if single else pairs)
        budget = check_batch_tokens(batch_tokens, self.device)
        call = snapshot(self)
        encoded, cut = encode_counted(call.encoder, cleaned)
        call.last_stats = {"pairs": len(cleaned), "tokens": 0, **cut}
        with evaluating(self):
            scores = call._score_pairs(encoded, budget, show_progress, stop) if cleaned else []
        self._encoder, self.last_stats = call._encoder, call.last_stats
        check_finite(scores, lambda i: f"pair {i} (query {cleaned[i][0][:60]!r})")
        result = np.asarray(scores, dtype=np.float32)
        return result[0] if single else result

    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[dict[str, Any]]:
        """Puts documents in order for one query, best first.

        Parameters:
            query: text, not empty.
            documents: strings, or mappings with `text` and optionally `title`; at least one.
            top_k: return only that many.
            return_documents: add each document under `text`.

        Returns:
            `[{"corpus_id": index in documents, "score": float, "text": …}, …]`; equal scores keep the given order.

        Raises like `predict`, and `InputError` if there are no documents or `top_k` is not positive.
        """
        documents = document_list(documents)
        if not documents:
            raise InputError("no documents to rank")
        if top_k is not None:
            top_k = whole_number(top_k, "top_k")
        scores = self.predict(
            [(query, document) for document in documents],
            batch_tokens=batch_tokens,
            show_progress=show_progress,
            stop=stop,
        )
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
        if return_documents:
            for row in ranked:
                row["text"] = documents[row["corpus_id"]]
        return ranked

    def explanation(self, query: str, document: Any) -> Explanation:
        """Why a document gets its score. Raises like `predict`."""
        score = float(self.predict((query, document), show_progress=False))
        return Explanation((), "logit", score, "this family does not take its scores apart")

    def check_pairs(self, pairs: Sequence[Any]) -> list[tuple[str, str]]:
        """The texts of (query, document) pairs. Raises `InputError` as `predict` does."""
        cleaned, empty = [], 0
        queries: dict[str, str] = {}
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pair {i} must be (query, document), got {type(pair).__name__}")
            query, document = pair
            if not isinstance(query, str) or query not in queries:
                queries[query] = clean_query(query, f"the query of pair {i}")
            text = document_text(document, f"document {i}")
            empty += not text
            cleaned.append((queries[query], text))
        if empty:
            logger.warning("%d of %d documents are empty; they are scored as an empty text", empty, len(cleaned))
        return cleaned


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument called `name`."""
    return name in inspect.signature(function).parameters
