"""TWOLAR: a pointwise reranker that reads query and document together and scores by two logits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from .answer_head import answer_rows
from .document_states import common_length
from .modeling_ranker import RankerModel, RankingOutput, group_loss
from .ranking_attention import check_attention
from .ranking_calls import snapshot
from .ranking_engine import align_left, pad_right, run_batches
from .ranking_errors import ModelError
from .ranking_options import Explanation, LogitOptions
from .ranking_states import KeptStates
from .ranking_text import EncodedPair, TemplateEncoder, clean_query, document_text
from .rope_regimes import readable_length
from .shared_prefixes import PACKED_TOKENS, prefix_groups, shares_prefixes


class TwolarModel(KeptStates, RankerModel):
    """A score read off the logits of one position (TWOLAR, section 3.1).

    On a T5-like model that is the decoder's first step; on a decoder-only model the prompt's last token. There, pairs
    share the states of what the template puts first: with "Document: {document} Query: {query} Relevant:" a document
    is read once for all its queries, and its states can be kept, as by `TSARankModel`. Strategies:
    `difference` logit(true) − logit(false); `softmax` p(true) of the two (monoT5); `single_token` one logit (RankT5).
    """

    options_class = LogitOptions
    title = "True/false logits"
    description = "A reranker that reads query and document together and scores them by the logits of an answer."
    tag = "true-false-reranker"
    default_for = ("encoder-decoder",)
    limits = ("Scores are not probabilities unless the strategy is `softmax`, and even then they are not calibrated.",)
    published: ClassVar[dict[str, dict[str, Any]]] = {
        # The published TWOLAR code ends its template with a space.
        "Dundalia/TWOLAR-*": {"template": "Query: {query} Document: {document} Relevant: ", "strategy": "difference"},
        "castorini/monot5-*": {"strategy": "softmax", "max_length": 512},
        "Soyoung97/RankT5-*": {
            "template": "Query: {query} Document: {document}",
            "strategy": "single_token",
            "score_text": "<extra_id_10>",
            "max_length": 512,
        },
    }
    citation = """\
@inproceedings{baldelli2024twolar,
  title = {{TWOLAR}: a {TWO}-step {LLM}-Augmented distillation method for passage Reranking},
  author = {Baldelli, Davide and Jiang, Junfeng and Aizawa, Akiko and Torroni, Paolo},
  booktitle = {Advances in Information Retrieval (ECIR)},
  year = {2024},
  url = {https://arxiv.org/abs/2403.17759}
}"""
    unread = 0
    options: LogitOptions

    @classmethod
    def scoring(cls, options: LogitOptions) -> str:
        how = {
            "difference": f"the logit of “{options.true_text}” minus that of “{options.false_text}”, unbounded",
            "softmax": f"the probability of “{options.true_text}” of the two answers, between 0 and 1",
            "single_token": f"the logit of the otherwise unused token {options.score_text}, unbounded",
        }
        return (
            "Query and document are read together, and the score is read off the logits of one position (TWOLAR, "
            f"section 3.1). The strategy is `{options.strategy}`: {how[options.strategy]}. Higher is more relevant."
        )

    @classmethod
    def unused_options(cls, options: LogitOptions) -> tuple[str, ...]:
        return ("true_text", "false_text") if options.strategy == "single_token" else ("score_text",)

    @classmethod
    def document_first(cls, options: LogitOptions, decoder_only: bool) -> bool:
        return decoder_only and options.template.index("{document}") < options.template.index("{query}")

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        return AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM

    def _make_encoder(self) -> TemplateEncoder:
        self.answer_ids()  # an answer that is not one token is an error at once, not at the first score
        context = None if self.config.is_encoder_decoder else readable_length(self.backbone)
        return TemplateEncoder(self.tokenizer, self.options, context)

    # ---- the answer's tokens ---------------------------------------------------------------------

    def answer_ids(self) -> list[int]:
        """Vocabulary ids of the answer tokens where the answer stands: [true, false], or [score token].

        Raises `ModelError` if one of them is not a single token of this tokenizer there.
        """
        if self.options.strategy == "single_token":
            return [self._special_or_single(self.options.score_text)]
        ids = [self._special_or_single(text) for text in (self.options.true_text, self.options.false_text)]
        if ids[0] == ids[1]:
            raise ModelError(
                f"{self.options.true_text!r} and {self.options.false_text!r} are the same token ({ids[0]}) for this "
                "tokenizer; choose other true_text and false_text"
            )
        return ids

    def _special_or_single(self, text: str) -> int:
        if text in self.tokenizer.get_added_vocab():
            return self.tokenizer.get_added_vocab()[text]
        ids = self._answer_in_context(text)
        unknown = self.tokenizer.unk_token_id
        if len(ids) != 1 or (unknown is not None and ids[0] == unknown):
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise ModelError(
                f"the answer {text!r} is not a single token of this tokenizer but {pieces}; "
                "name another one in the ranking options (true_text, false_text, score_text)"
            )
        return ids[0]

    def _answer_in_context(self, text: str) -> list[int]:
        def ids(string: str) -> list[int]:
            return self.tokenizer(string, add_special_tokens=False)["input_ids"]

        if self.config.is_encoder_decoder:
            return ids(text)  # the decoder starts with the answer
        tail = self.options.template[-40:]
        if "}" in tail:
            tail = tail[tail.rindex("}") + 1 :]
        border = "" if tail.endswith(" ") or not tail else " "
        before, whole = ids(tail), ids(f"{tail}{border}{text}")
        return whole[len(before) :] if before and whole[: len(before)] == before else ids(border + text)

    # ---- tensors in, scores out ------------------------------------------------------------------

    def answer_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Logits of the answer tokens, `(pairs, 2)` or `(pairs, 1)`; ids `(pairs, length)` padded on either side.

        In float32 also where the model computes in less, see `answer_head`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.is_encoder_decoder:
            check_attention(self.backbone)
            start = self.config.decoder_start_token_id
            decoder = torch.full((len(input_ids), 1), start, dtype=torch.long, device=input_ids.device)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder, **kwargs}
            return self._answers(lambda: self.backbone(**inputs, use_cache=False).logits[:, 0, :])
        (aligned,) = align_left(attention_mask, input_ids)
        keep = torch.zeros_like(aligned, dtype=torch.bool)
        keep[torch.arange(len(keep), device=keep.device), attention_mask.sum(-1) - 1] = True
        return self._logits_at(aligned, keep, **kwargs)

    def _answers(self, logits_of: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The answer tokens' columns of what a pass through the backbone gives, `(positions, vocabulary)`."""
        answers = self.answer_ids()
        with answer_rows(self.backbone, answers) as only:
            logits = logits_of()
        return logits if only else logits[:, answers]

    def pool(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores `(pairs,)` float32 from the answer logits, as `options.strategy` says."""
        logits = logits.float()
        if self.options.strategy == "difference":
            return logits[:, 0] - logits[:, 1]
        if self.options.strategy == "softmax":
            return logits.softmax(-1)[:, 0]
        return logits[:, 0]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RankingOutput:
        """Scores of tokenized pairs; `labels` `(groups,)` as in `TSARankModel.forward`."""
        scores = self.pool(self.answer_logits(input_ids, attention_mask, **kwargs))
        return RankingOutput(loss=None if labels is None else group_loss(scores, labels), scores=scores)

    # ---- text in, scores out ---------------------------------------------------------------------

    def check_keeps_states(self) -> None:
        """Raises `ModelError` where a document's states depend on the query, or not every position is kept."""
        if self.config.is_encoder_decoder:
            raise ModelError(
                f"no document states can be kept: {self.config.model_type} is an encoder-decoder, which reads query "
                "and document at once"
            )
        if not self.encoder.document_first:
            raise ModelError(
                "no document states can be kept: the template puts the query before the document, whose states then "
                'depend on it; only a template such as "Document: {document} Query: {query} Relevant:" allows it'
            )
        super().check_keeps_states()

    def answer_scores(self, query: str, document: Any) -> dict[str, float]:
        """Why a document got its score: the logit of each answer token."""
        call = snapshot(self)
        pair = call.encoder.pairs([(clean_query(query), document_text(document))])[0]
        with torch.inference_mode():
            logits = call.answer_logits(torch.tensor([pair.prompt], device=self.device))[0]
        names = call.tokenizer.convert_ids_to_tokens(call.answer_ids())
        return dict(zip(names, logits.float().tolist(), strict=True))

    def explanation(self, query: str, document: Any) -> Explanation:
        parts = self.answer_scores(query, document)
        score = float(self.pool(torch.tensor([list(parts.values())])))
        rule = {
            "difference": "the first logit less the second",
            "softmax": "the first one's probability among the two",
            "single_token": "the logit itself",
        }[self.options.strategy]
        return Explanation(tuple(parts.items()), "logit", score, rule)

    def answer_tokens(self) -> dict[str, int]:
        ids = self.answer_ids()
        return dict(zip(self.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))

    def _score_pairs(
        self,
        pairs: Sequence[EncodedPair],
        batch_tokens: int,
        show: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Prompts that begin alike enough share what they begin with; the others go through in padded batches."""
        # One token whose probability is asked makes the machinery of query likelihood read the whole prompt.
        asked = [EncodedPair(pair.prompt, (0,), pair.source) for pair in pairs]
        if self.document_store is not None:
            found = self._score_from_states(asked, batch_tokens, show, stop)
            return self.pool(torch.cat([logits.reshape(1, -1) for logits in found])).tolist()
        alone = self.config.is_encoder_decoder or not shares_prefixes(self.backbone)
        groups = [] if alone else self._prefix_groups(asked)
        tasks = groups or [([i], ()) for i in range(len(pairs))]
        invariant = bool(groups) and self._is_invariant()
        scores = [math.nan] * len(pairs)

        def keep(members: Sequence[int], logits: torch.Tensor) -> None:
            for i, score in zip(members, self.pool(logits).tolist(), strict=True):
                scores[i] = score

        def run(batch: Sequence[int]) -> None:
            single = [tasks[t][0][0] for t in batch if len(tasks[t][0]) == 1]
            shared = [t for t in batch if len(tasks[t][0]) > 1]
            if single:
                keep(
                    single, self.answer_logits(*pad_right([pairs[i].prompt for i in single], self.pad_id, self.device))
                )
            if shared and invariant:
                chosen = [[asked[i] for i in tasks[t][0]] for t in shared]
                found = self._few_suffixes(chosen, batch_tokens, [tasks[t][1] for t in shared])
                for t, logits in zip(shared, found, strict=True):
                    keep(tasks[t][0], torch.stack(logits))
                return
            for t in shared:
                members, prefix = tasks[t]
                rows = [asked[i] for i in members]
                longest = max(len(pair.prompt) - common_length(prefix, pair.prompt) for pair in rows)
                # Long rows side by side would hide most of each other.
                packed = self._packs_queries() and longest <= PACKED_TOKENS // 4
                keep(members, torch.stack(self._shared_prefix(rows, prefix, batch_tokens, packed)))

        lengths = [
            len(prefix) + sum(len(pairs[i].prompt) - common_length(prefix, pairs[i].prompt) for i in members)
            for members, prefix in tasks
        ]
        self.last_stats["tokens"] = sum(lengths)
        run_batches(lengths, batch_tokens, run, [len(members) for members, _ in tasks], show, stop)
        return scores

    def _prefix_groups(self, pairs: Sequence[EncodedPair]) -> list[tuple[list[int], tuple[int, ...]]]:
        """`prefix_groups` of the pairs of each regime (`rope_regimes`)."""
        regimes: dict[int, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            regimes[self._pair_regime(pair)].append(i)
        return [
            ([alike[k] for k in members], prefix)
            for alike in regimes.values()
            for members, prefix in prefix_groups([pairs[i].prompt for i in alike])
        ]

    def _logits_at(self, input_ids: torch.Tensor, keep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Of the answer tokens alone, `(kept positions, 2)` or `(kept positions, 1)`."""
        inner = super()._logits_at
        return self._answers(lambda: inner(input_ids, keep, **kwargs))
