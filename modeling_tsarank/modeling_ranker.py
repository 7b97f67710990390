"""The base of all model families: a wrapper around an ordinary backbone, with `predict` and `rank`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .crossencoder_tsarank import CrossEncoderRanker, code_reference, write_cross_encoder_files
from .pipeline_text_ranking import TextRankingPipeline
from .ranking_engine import Task, evaluating, installed_engine, read_plainly, read_values, values_at, while_idle
from .ranking_errors import InputError, ModelError, load_errors
from .ranking_options import CONFIG_KEY, Explanation, RankingOptions, whole_number
from .ranking_scoring import (
    RankingOutput,
    align_left,
    attention_choice,
    check_attention,
    check_batch_tokens,
    check_finite,
    first_step_logits,
    refuse_attention,
)
from .ranking_text import (
    EncodedPair,
    cacheable_ids,
    clean_pairs,
    clean_query,
    count_cuts,
    document_list,
    document_text,
)


# Options of `from_pretrained` that select the source, and so apply to the tokenizer as well.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


class RankerModel(PreTrainedModel):
    """Base of the ranking models: an ordinary backbone under the prefix `backbone`, a tokenizer, ranking options.

    Its folder on disk is the backbone's own folder, with `auto_map`, the modeling files and the ranking options added,
    so the same folder also loads as a plain language model. A family declares:

    Attributes:
        options_class: its options, which name the family and hold its default prompts.
        title, description, citation: its name in a few words, a one-sentence description, BibTeX of its paper.
        tag: its tag on the Hub.
        limits: the limitations on its card, in sentences.
        published: published checkpoints by patterns of their names: the options each was trained with. The first
            match counts.
        default_for: the kinds of plain models (`models.families.model_kind`) that become this family by default.
        own_head: whether the score comes from a head that a plain language model lacks, as in `CrossEncoderModel`.
        scores_query_tokens: whether a score consists of the log-probabilities of the query's tokens: training then
            uses `query_logits`, and otherwise the scores of `forward`.
    """

    options_class: ClassVar[type[RankingOptions]]
    title: ClassVar[str] = ""
    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    tag: ClassVar[str] = "reranker"
    limits: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[dict[str, dict[str, Any]]] = {}
    default_for: ClassVar[tuple[str, ...]] = ()
    own_head: ClassVar[bool] = False
    scores_query_tokens: ClassVar[bool] = False

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _auto_class = "AutoModel"

    # The number format of the computation, if not the dtype: "int8" for quantized weights, which cannot be saved.
    number_format: str | None = None
    # The store where `predict` and `rank` look up document states and add missing ones; `None` turns it off.
    document_store: Any = None
    calibration: Any = None  # from scores to probabilities, a `Calibration`; saved with the model
    plain_cross_encoder: int | None = None  # `max_length`, if sentence-transformers does not need this code
    options: RankingOptions

    def __init__(self, config: Any, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.options = self.options_class.from_dict(getattr(config, CONFIG_KEY, None) or {})
        if backbone is None:
            inner = copy.deepcopy(config)
            # The backbone may not support the wrapper's choice of attention: BLOOM has only eager.
            requested = getattr(config, "_attn_implementation_internal", None)
            inner._attn_implementation_internal = None
            refuse_attention(requested)
            backbone = self.backbone_class(config).from_config(
                inner, dtype=config.dtype, **attention_choice(self.backbone_class(config), inner, requested)
            )
            self.backbone = backbone
            self.post_init()
        else:
            # In this order: `post_init` would reinitialize weights that are not marked as loaded, such as LoRA's, and
            # tie a head that was trained separately.
            self.post_init()
            self.backbone = backbone
        check_attention(backbone)
        self._tokenizer: Any = None
        self._encoder: Any = None
        # Counts of the last `predict`: pairs, and tokens processed by the backbone (a shared document counts once).
        self.last_stats: dict[str, int] = {}
        self._running_calls: dict[str, Any] = {"running": 0}

    def get_correct_experts_implementation(self, requested_experts: str | None) -> Any:
        """The requested one: transformers looks for experts here, but they are in the backbone, which checks it."""
        return requested_experts

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As for every model of transformers. Raises `ModelError` for attention that is unknown, unavailable or not
        for ranking (`flex_attention`, `paged|…`), and while a call is running."""
        refuse_attention(attn_implementation)
        with while_idle(self, "set_attn_implementation"), load_errors(f"with {attn_implementation!r:.200}"):
            # The backbone first: it may refuse what this class accepts, and both must have the same one.
            self.backbone.set_attn_implementation(attn_implementation, *args, **kwargs)
            super().set_attn_implementation(attn_implementation, *args, **kwargs)

    # ---- loading ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Loads a ranking checkpoint with its tokenizer (`tokenizer=` to use another).

        Raises `ModelError` if the folder is not of this family or weights are missing.
        """
        told = kwargs.pop("output_loading_info", False)
        tokenizer = kwargs.pop("tokenizer", None)
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        load: Callable[..., Any] = super().from_pretrained
        with load_errors(pretrained_model_name_or_path):
            if config is None:
                config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
            kwargs |= {"config": config, "output_loading_info": True}
            model, info = load(pretrained_model_name_or_path, *args, **kwargs)
            if info["missing_keys"]:
                lacking = ", ".join(sorted(info["missing_keys"]))
                raise ModelError(f"{pretrained_model_name_or_path} is no complete {cls.__name__}: missing {lacking}")
            model.tokenizer = tokenizer or AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub)
        model.eval()
        return (model, info) if told else model

    @classmethod
    def from_backbone(cls, name_or_path: str | os.PathLike | PreTrainedModel, **arguments: Any) -> Any:
        """Creates a ranker from a plain language model; needs the installed package.

        Parameters:
            name_or_path: a Hub id, a folder, a GGUF file, or a model already loaded (then `tokenizer` is needed).
            arguments: `tokenizer`, `device`, `dtype` (`None` keeps the checkpoint's), `trust_remote_code`, `revision`,
                `gguf_file`; `backbone_options`, a dict of further arguments of the backbone's `from_pretrained`;
                ranking options to change, by name.

        Raises `ModelError` if there is no such model or it is of the wrong kind.
        """
        return installed_engine("from_backbone").make_ranker(cls, name_or_path, **arguments)

    # ---- saving ----------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the backbone's ordinary folder with the ranking options, the modeling files and the tokenizer.

        The result loads by `AutoModel.from_pretrained(folder, trust_remote_code=True)` without this package installed,
        as a pipeline and `CrossEncoder`; without trust, as the plain model. `push_to_hub=True` uploads it, privately.
        """
        if self.number_format is not None:
            raise ModelError(f"{self.number_format} weights cannot be saved; save the unquantized model")
        if os.path.isfile(save_directory):
            raise InputError(f"cannot save to {save_directory}: it is a file, expected a folder")
        state_dict = kwargs.pop("state_dict", None)
        if state_dict is not None:
            kwargs["state_dict"] = {key.removeprefix("backbone."): value for key, value in state_dict.items()}
        push = kwargs.pop("push_to_hub", False)
        config = self.backbone.config
        pipeline = {"impl": code_reference(TextRankingPipeline), "pt": ["AutoModel"], "type": "text"}
        added = {
            CONFIG_KEY: self.options.to_dict(),
            "auto_map": {"AutoModel": code_reference(type(self))},
            "custom_pipelines": {"text-ranking": pipeline},
        }
        before = dict(vars(config))
        try:
            vars(config).update(added)
            self.backbone.save_pretrained(save_directory, *args, **kwargs)
        finally:  # the backbone may be the user's own
            for name in added.keys() - before.keys():
                delattr(config, name)
            vars(config).update(before)
        if kwargs.get("is_main_process", True):
            for part in (self, TextRankingPipeline, CrossEncoderRanker):
                custom_object_save(part, save_directory)
            if self.calibration is not None:
                self.calibration.save(Path(save_directory, "calibration.json"))
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(save_directory)
            write_cross_encoder_files(save_directory, self.plain_cross_encoder)
        if push:
            self._push_folder(save_directory, kwargs.get("repo_id") or Path(save_directory).name, kwargs)

    def _push_folder(self, folder: Any, name: str, kwargs: dict[str, Any]) -> None:
        from huggingface_hub import HfApi

        api = HfApi(token=kwargs.get("token"))
        repo_id = api.create_repo(name, private=kwargs.get("private", True), exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=kwargs.get("commit_message"))

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
        """Converts (query, document) texts to token ids according to `options`."""
        made, own = self._encoder, copy.copy(self)
        if made is None or made[0] is not own._tokenizer or made[1] is not own.options:
            made = self._encoder = own._tokenizer, own.options, own._make_encoder()
        return made[2]

    def set_options(self, **changes: Any) -> None:
        """Changes ranking options of a loaded model. Raises `InputError` for an unknown field or a bad value."""
        self.options = self.options.override(**changes)
        setattr(self.config, CONFIG_KEY, self.options.to_dict())

    @property
    def pad_id(self) -> int:
        """The padding token id; any valid id works, since masked positions are never attended to."""
        tokenizer, embeddings = self.tokenizer, cast(Any, self.get_input_embeddings())
        for value in (getattr(tokenizer, "pad_token_id", None), tokenizer.eos_token_id):
            if value is not None and value < len(embeddings.weight):
                return value
        return 0

    # ---- what a family is ------------------------------------------------------------------------

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        """The auto class for loading the plain model of this family."""
        raise NotImplementedError

    @classmethod
    def scoring(cls, options: Any) -> str:
        """How these options turn a model's output into a score, in sentences."""
        raise NotImplementedError

    @classmethod
    def unused_options(cls, options: Any) -> tuple[str, ...]:
        """Names of the options that have no effect given the others."""
        return ()

    @classmethod
    def document_first(cls, options: Any, decoder_only: bool) -> bool:
        """Whether the document precedes the query, so that several queries can share its states."""
        return False

    def answer_tokens(self) -> dict[str, int]:
        """Ids of the tokens whose logits make the score, by their texts; empty for scores from other outputs."""
        return {}

    def _make_encoder(self) -> Any:
        """A `TextEncoder` with `pairs` and, for a store, `prompts`."""
        raise NotImplementedError

    def _read_out(self) -> tuple[str, Sequence[int]]:
        """The output at the wanted positions: `token_log_probs`, or `answer_logits` and their token ids."""
        raise NotImplementedError

    def _task(self, pair: EncodedPair) -> Task:
        """The task of a pair: its prompt, with the output at the last token."""
        return Task(pair.prompt, (len(pair.prompt) - 1,), (), self._cacheable(pair), len(pair.prompt))

    def pool(self, values: torch.Tensor) -> torch.Tensor:
        """Scores `(pairs,)` float32 from the outputs of each pair, `(pairs, values)`."""
        raise NotImplementedError

    def _pool_values(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scores `(pairs,)` from each pair's values `(positions, values)`."""
        return self.pool(torch.cat([one[-1:] for one in values]))

    # ---- tensors in, scores out ------------------------------------------------------------------

    def answer_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The values of a score, `(pairs, values)`, at each text's last token or a decoder's first step.

        Parameters:
            input_ids: `(pairs, length)`, padded on either side.
            attention_mask: `(pairs, length)`, 1 at real tokens; `None` if nothing is padded.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.config.is_encoder_decoder:
            return first_step_logits(self.backbone, input_ids, mask, self._read_out()[1])
        (aligned,) = align_left(mask, input_ids)
        keep = torch.zeros_like(aligned, dtype=torch.bool)
        keep[torch.arange(len(keep), device=keep.device), mask.sum(-1) - 1] = True
        return values_at(self.backbone, aligned, keep, self._read_out())

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> RankingOutput:
        """`RankingOutput` with the scores of tokenized pairs; arguments as in `answer_logits`."""
        return RankingOutput(scores=self.pool(self.answer_logits(input_ids, attention_mask)))

    def scores_to_train(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """Scores `(pairs,)` with gradients of encoded pairs, in one padded batch."""
        return self._pool_values(read_plainly(self, [self._task(pair) for pair in pairs]))

    def _cacheable(self, pair: EncodedPair) -> tuple[int, ...]:
        return () if self.document_store is None else cacheable_ids(pair.source, self.options)

    def _values_of(self, query: str, document: Any) -> tuple[Any, EncodedPair, torch.Tensor]:
        """A snapshot of the model, the pair's token ids, and the values `(positions, values)` of its score."""
        call = copy.copy(self)
        pair = call.encoder.pairs([(clean_query(query), document_text(document))])[0]
        with evaluating(self), torch.inference_mode():
            values, _ = read_values(call, [call._task(pair)], check_batch_tokens(None, self.device), False)
        return call, pair, values[0]

    # ---- document states ---------------------------------------------------------------------------

    def check_cacheable(self) -> None:
        """Raises `ModelError` if states cannot be cached: recurrent layers, or a query before the document."""
        check_attention(self.backbone)
        installed_engine("a store of document states").check_cacheable(self)

    def index(self, documents: Sequence[Any], store: Any, **options: Any) -> int:
        """Encodes documents ahead of any query and caches their states: ranking then only costs the query's tokens.

        Parameters:
            documents: as in `rank`; those already in the store are not encoded again.
            store: a `MemoryStore` or a `FolderStore`. It becomes the model's `document_store`.
            options: `batch_tokens`, `show_progress` and `stop`, as in `predict`.

        Returns how many were encoded. Raises `ModelError` if states cannot be cached; otherwise like `predict`.
        """
        call = copy.copy(self)
        with evaluating(self), torch.inference_mode():
            call.check_cacheable()
            read = installed_engine("a store of document states").index_documents(call, documents, store, **options)
        self.document_store, self.last_stats = store, call.last_stats
        return int(read)

    # ---- the verbs -------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(
        self,
        pairs: Sequence[tuple[str, Any]] | tuple[str, Any],
        *,
        instruction: str | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Any:
        """Scores of (query, document) pairs, in the given order.

        Parameters:
            pairs: (query, document) tuples; a document is a string or a mapping with `text` and optionally `title`.
            instruction: replaces `options.instruction`, for a model with an instruction in its prompt.
            batch_tokens: maximum padded tokens of a batch (a longer single pair still runs).
            show_progress: `None` shows a bar on a terminal when the work is long.
            stop: called before every batch; if it returns true, `RankingCancelled` is raised.
            options: of CrossEncoder's `predict`, such as `convert_to_tensor`; they need the installed package.

        Returns:
            float32 array `(pairs,)`; 0-dimensional for a single pair. Higher is more relevant.

        Raises `InputError` for an empty query or a value of the wrong type, `NonFiniteScoreError` for NaN or infinity,
        `ResourceError` when memory runs out. Empty and truncated texts are warned about; `last_stats` counts them.
        """
        if options:
            given = self, pairs, instruction, batch_tokens, show_progress, stop
            return installed_engine(f"predict({', '.join(options)})").predict(*given, **options)
        single = isinstance(pairs, tuple | list) and len(pairs) == 2 and isinstance(pairs[0], str)
        cleaned = clean_pairs([pairs] if single else pairs)
        budget = check_batch_tokens(batch_tokens, self.device)
        call = copy.copy(self)  # changes by other threads do not affect it
        if instruction is not None:
            call.options = call.options.override(instruction=instruction)
        encoded = call.encoder.pairs(cleaned)
        cut = count_cuts(cleaned, encoded, call.options)
        with evaluating(self):
            values, tokens = read_values(call, [call._task(pair) for pair in encoded], budget, show_progress, stop)
        scores = call._pool_values(values).tolist() if cleaned else []
        self._encoder, self.last_stats = call._encoder, {"pairs": len(cleaned), "tokens": tokens, **cut}
        check_finite(scores, lambda i: f"pair {i} (query {cleaned[i][0][:60]!r})")
        result = np.asarray(scores, dtype=np.float32)
        return result[0] if single else result

    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        **call: Any,
    ) -> list[dict[str, Any]]:
        """Ranks documents for one query, best first.

        Parameters:
            query: text, not empty.
            documents: strings, or mappings with `text` and optionally `title`; at least one.
            top_k: return only that many.
            return_documents: add each document under `text`.
            call: as in `predict`, and in the installed `scores.ranking.rank`: `first_stage_scores`, `threshold`, ….

        Returns:
            `[{"corpus_id": index in documents, "score": float, "text": …}, …]`; equal scores keep the given order.

        Raises like `predict`, and `InputError` if there are no documents or `top_k` is not positive.
        """
        engine = installed_engine()
        if engine is not None and call.keys() & engine.RANK_OPTIONS:
            return list(engine.rank(self, query, documents, top_k, return_documents, **call))
        documents = document_list(documents)
        if not documents:
            raise InputError("no documents to rank")
        top_k = len(documents) if top_k is None else whole_number(top_k, "top_k")
        scores = self.predict([(query, document) for document in documents], **call)
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        texts = [{"text": documents[i]} if return_documents else {} for i in order]
        return [{"corpus_id": i, "score": float(scores[i]), **text} for i, text in zip(order, texts, strict=True)]

    def explain(self, query: str, document: Any) -> Explanation:
        """Why a document gets its score. Raises like `predict`."""
        score = float(self.predict((query, document), show_progress=False))
        return Explanation((), "logit", score, "this family does not explain its scores")
