"""Queries generated from passages: by a query-likelihood model of this project, or by a model like docT5query.

After continual pre-training, a model continues `Document: … Query:` with a query: TSARankLLM's first stage trains a
query generator. An encoder-decoder such as docT5query (Nogueira and Lin, 2019) gets only the passage.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from modeling_tsarank.eval.bm25 import EnglishAnalyzer
from modeling_tsarank.eval.types import Document
from modeling_tsarank.models.user_texts import AnyUserText
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.data.data_options import SamplingOptions
from modeling_tsarank.trainers.data.query_files import QueryCollector, fill, normalized
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


logger = logging.getLogger(__name__)

_NUMBERING = re.compile(r"^(?:\d{1,3}[.):]\s*)+")
_QUOTES = " \t\"'\u201c\u201d\u2018\u2019\u00ab\u00bb*`"


class QueryGenerator:
    """Generates queries for passages.

    Args:
        name_or_path: A query-likelihood model (any causal language model works, such as smollm2-135m-instruct, which
            is included in this package), or an encoder-decoder such as docT5query.
        options: Sampling options.
        cache: Caches every finished batch, so that an interrupted run can be resumed.
        device: Torch device.
        dtype: Dtype of the weights.

    Raises:
        ModelError: no such model, or one that ranks by logits and cannot generate.
    """

    def __init__(
        self,
        name_or_path: str,
        options: SamplingOptions | None = None,
        cache: RequestCache | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        from modeling_tsarank.models.resolver import resolve_language_model
        from modeling_tsarank.rankers.pointwise import scorer_identity

        self.options = options or SamplingOptions()
        self._source, self._device, self._dtype = resolve_language_model(name_or_path), device, dtype
        self.name = self._source.label
        self._cache = cache
        self._identity = {**scorer_identity(self._source.name), "dtype": str(dtype)}
        self._model: Any = None
        self._tokenizer: Any = None
        self._ranker: Any = None

    def generate(self, passages: Sequence[str]) -> list[list[tuple[str, bool]]]:
        """Raw texts of one batch: for each passage `per_passage` pairs (text, whether it ended with EOS).

        The same batch gives the same texts on the same machine: sampling is seeded by the batch.
        """
        request = {"generator": self._identity, "options": asdict(self.options), "passages": list(passages)}
        kept = None if self._cache is None else self._cache.get(request)
        if kept is None:
            kept = self._sample(passages)
            if self._cache is not None:
                self._cache.put(request, kept)
        return [[(text, bool(ended)) for text, ended in passage] for passage in kept]

    def _load(self) -> None:
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        from modeling_tsarank.models.checkpoints import load_backbone
        from modeling_tsarank.models.loading import load_ranker, resolve_device, resolve_dtype
        from modeling_tsarank.ranking_errors import load_errors

        device = resolve_device(self._device)
        dtype = resolve_dtype(self._dtype, device)
        location = self._source.location()
        with load_errors(self._source.name):
            config = AutoConfig.from_pretrained(location)
        if config.is_encoder_decoder:
            model, self._tokenizer = load_backbone(location, lambda config: AutoModelForSeq2SeqLM, dtype=dtype)
            self._model = model.to(device).eval()
            return
        context: Any = getattr(config, "max_position_embeddings", None)
        wanted = self.options.max_passage_tokens + self.options.max_new_tokens
        if context is not None and wanted > context:
            raise InputError(
                f"{self.name} allows {context} tokens, passage and query need {wanted}: lower --max-passage-tokens"
            )
        # Length limits for ranking that fit a short context.
        short = context is not None and context < 512
        lengths: dict[str, Any] = {"max_length": context, "max_query_length": context // 2} if short else {}
        ranker = load_ranker(self._source.name, device=device, dtype=dtype, **lengths)
        if not ranker.scores_query_tokens:
            raise ModelError(f"{self.name} ranks by {ranker.title.lower()} and cannot generate queries")
        self._ranker, self._model, self._tokenizer = ranker, ranker.backbone, ranker.tokenizer

    def _inputs(self, passages: Sequence[str]) -> dict[str, Any]:
        """Padded ids and mask: left-padded for a decoder, right-padded for an encoder."""
        import torch

        limit = self.options.max_passage_tokens
        if self._ranker is not None:
            rows = [prompt.cut(limit) for prompt in self._ranker.encoder.prompts(list(passages))]
            pad, side = self._ranker.pad_id, "left"
        else:
            rows = AnyUserText(self._tokenizer).encode_whole(passages, limit)
            pad, side = self._tokenizer.pad_token_id or 0, "right"
        tensors = [torch.tensor(row) for row in rows]
        pad_sequence = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
        device = self._model.device
        return {
            "input_ids": pad_sequence(tensors, padding_value=pad).to(device),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in tensors]).to(device),
            "pad_token_id": pad,
        }

    def _sample(self, passages: Sequence[str]) -> list[list[tuple[str, bool]]]:
        import torch

        from modeling_tsarank.ranking_errors import load_errors

        if self._model is None:
            self._load()
        inputs = self._inputs(passages)
        seed = random.Random(f"{self.options.seed}\0" + "\0".join(passages)).getrandbits(63)
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        # Generation uses fields of the configuration that loading does not.
        with load_errors(self._source.name), torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            output = self._model.generate(**inputs, **self.options.for_generate())
        start = inputs["input_ids"].shape[1] if self._ranker is not None else 1
        ends = self._model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        ids, decode = output[:, start:].tolist(), partial(self._tokenizer.decode, skip_special_tokens=True)
        rows = [(decode(row), any(token in ends for token in row)) for row in ids]
        each = self.options.per_passage
        return [rows[place : place + each] for place in range(0, len(rows), each)]


def tidy_generated(text: str, ended: bool) -> tuple[str, str | None]:
    """A raw text as a query, and why it must be rejected, if so.

    A query ends at the first line break, question mark, or repetition of the prompt (`Document:`, `Query:`); the rest
    of the text is dropped. A query without an end within the maximum length is "unfinished".
    """
    first = next(iter(text.strip().splitlines()), "")
    finished = ended or "\n" in text.strip()
    for stop in ("Document:", "Query:"):
        head, found, _ = first.partition(stop)
        if found:
            first, finished = head, True
    question, mark, _ = first.partition("?")
    if mark:
        first, finished = f"{question}?", True
    query = _NUMBERING.sub("", " ".join(first.split()).strip(_QUOTES), count=1).strip(_QUOTES)
    if not query:
        return query, "empty"
    return query, None if finished else "unfinished"


def generate_queries(
    documents: Mapping[str, Document], generator: QueryGenerator, collector: QueryCollector, min_shared: int = 1
) -> None:
    """Fills a collector with queries for passages sampled at random, without replacement.

    A query that is a verbatim piece of its passage is rejected ("copied"): cropping makes such queries. So is a query
    that shares fewer than `min_shared` stems with its passage ("unrelated"): it could be about any passage.

    Args:
        documents: Document id to document.
        generator: Generates them.
        collector: Accepts them; may stay incomplete if the corpus has no more.
        min_shared: Minimum number of stems, except stop words, that a query shares with its passage (English).
    """
    ids = list(documents)
    random.Random(generator.options.seed).shuffle(ids)
    size = generator.options.batch_size
    analyze = EnglishAnalyzer() if min_shared else None

    def queries() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
        for start in range(0, len(ids), size):
            batch = [(name, text) for name in ids[start : start + size] if (text := documents[name].full_text)]
            found = generator.generate([text for _, text in batch]) if batch else []
            for (name, text), candidates in zip(batch, found, strict=True):
                tidied = [tidy_generated(*one) for one in candidates]
                reasons = [why or _relation_problem(one, text, min_shared, analyze) for one, why in tidied]
                yield name, [(one, why) for (one, _), why in zip(tidied, reasons, strict=True)]

    fill(collector, queries(), generator.options.per_passage, "generating")


def _relation_problem(query: str, passage: str, min_shared: int, analyze: EnglishAnalyzer | None) -> str | None:
    if f" {normalized(query)} " in f" {normalized(passage)} ":
        return "copied"
    if analyze is not None and len(set(analyze(query)) & set(analyze(passage))) < min_shared:
        return "unrelated"
    return None
