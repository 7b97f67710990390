"""TWOLAR: a pointwise reranker that reads query and document together and scores by two logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from .modeling_ranker import RankerModel
from .ranking_engine import Task, logits_at, readable_length
from .ranking_errors import ModelError
from .ranking_options import Explanation, LogitOptions
from .ranking_scoring import (
    RankingOutput,
    align_left,
    first_step_logits,
    group_loss,
    pad_right,
    with_answer_head,
)
from .ranking_text import EncodedPair, Prompt, TextEncoder, split_around


class TemplateEncoder(TextEncoder):
    """Token ids for `TwolarModel`: one template around query and document, of which only the document is cut."""

    def __init__(self, tokenizer: Any, options: LogitOptions, context: int | None = None) -> None:
        super().__init__(tokenizer, options, context)
        self.options = options
        fixed = len(self.leading) + len(self.trailing)
        fixed += len(self._ids(options.template.replace("{query}", "").replace("{document}", "")))
        if fixed + options.max_query_length >= options.max_length:
            raise ModelError(
                f"the template's own {fixed} tokens and max_query_length ({options.max_query_length}) leave no room "
                f"for the document in max_length ({options.max_length})"
            )
        before_query = options.template.split("{query}")[0]
        # A tokenizer joins this white space to most queries, but not to all ("5 ships", where digits stand alone).
        self._loose = len(before_query) - len(before_query.rstrip())

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """(query, document) texts, already cleaned, as ids with the tokenizer's own special tokens around them."""
        texts, spans = [], []
        for query, document in pairs:
            text, document_span, query_span = self._fill(query, document)
            texts.append(text)
            spans.append((document_span, query_span))
        result = []
        encoded = self._user_text.encode(texts, spans)
        for (ids, offsets), (document_span, query_span) in zip(encoded, spans, strict=True):
            before = len(ids)
            ids, offsets = self._shorten_query(ids, offsets, query_span)
            prompt = split_around(ids, offsets, *document_span)
            prompt = Prompt((*self.leading, *prompt.before), prompt.document, (*prompt.after, *self.trailing))
            source = self._source(ids, offsets, document_span, query_span)
            cut = tuple(prompt.cut(self.options.max_length))
            left = before - len(ids)
            result.append(EncodedPair(cut, source=source, cut=len(prompt) - len(cut), query_cut=left))
        return result

    def prompts(self, documents: Sequence[str]) -> list[Prompt]:
        """What each document's pairs begin with, uncut: all in front of the query and of the white space before it.

        Empty where the query comes first.
        """
        return [pair.source for pair in self.pairs([("a", document) for document in documents])]

    @property
    def document_first(self) -> bool:
        """Whether the template puts the document before the query."""
        return self.options.template.index("{document}") < self.options.template.index("{query}")

    def _source(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        document_span: tuple[int, int],
        query_span: tuple[int, int],
    ) -> Prompt:
        if not self.document_first:
            return Prompt((), (), ())
        border = len(ids)
        while border and offsets[border - 1][1] > query_span[0] - self._loose:
            border -= 1
        prompt = split_around(ids[:border], offsets[:border], *document_span)
        return Prompt((*self.leading, *prompt.before), prompt.document, prompt.after)

    def _fill(self, query: str, document: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """The filled template and the character spans of document and query in it, whichever comes first."""
        template = self.options.template
        query_at, document_at = template.index("{query}"), template.index("{document}")
        # The texts are put in by position: a document may itself contain "{query}".
        first, second = (query, document) if query_at < document_at else (document, query)
        head, rest = template.split("{query}" if query_at < document_at else "{document}")
        middle, tail = rest.split("{document}" if query_at < document_at else "{query}")
        first_span = (len(head), len(head) + len(first))
        start = first_span[1] + len(middle)
        second_span = (start, start + len(second))
        text = head + first + middle + second + tail
        return (text, second_span, first_span) if query_at < document_at else (text, first_span, second_span)

    def _shorten_query(
        self, ids: list[int], offsets: list[tuple[int, int]], span: tuple[int, int]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        parts = split_around(ids, offsets, *span)
        surplus = len(parts.document) - self.options.max_query_length
        if surplus <= 0:
            return ids, offsets
        self._cut_query(list(parts.document), self.options.max_query_length)
        end = len(parts.before) + len(parts.document)
        return ids[: end - surplus] + ids[end:], offsets[: end - surplus] + offsets[end:]


class TwolarModel(RankerModel):
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

    def answer_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the answer tokens, `(pairs, 2)` or `(pairs, 1)`; ids `(pairs, length)` padded on either side.

        In float32 also where the model computes in less.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        answers = self.answer_ids()
        if self.config.is_encoder_decoder:
            return first_step_logits(self.backbone, input_ids, attention_mask, answers)
        (aligned,) = align_left(attention_mask, input_ids)
        keep = torch.zeros_like(aligned, dtype=torch.bool)
        keep[torch.arange(len(keep), device=keep.device), attention_mask.sum(-1) - 1] = True
        reading = with_answer_head(self.backbone, answers)
        logits = logits_at(reading or self.backbone, aligned, keep)
        return logits if reading else logits[:, answers]

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
    ) -> RankingOutput:
        """Scores of tokenized pairs; `labels` `(groups,)` as in `TSARankModel.forward`."""
        scores = self.pool(self.answer_logits(input_ids, attention_mask))
        return RankingOutput(loss=None if labels is None else group_loss(scores, labels), scores=scores)

    # ---- text in, scores out ---------------------------------------------------------------------

    def answer_scores(self, query: str, document: Any) -> dict[str, float]:
        """Why a document got its score: the logit of each answer token."""
        call, _, values = self._values_of(query, document)
        names = call.tokenizer.convert_ids_to_tokens(call.answer_ids())
        return dict(zip(names, values[-1].float().tolist(), strict=True))

    def explain(self, query: str, document: Any) -> Explanation:
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

    def _task(self, pair: EncodedPair) -> Task:
        last = (len(pair.prompt) - 1,)
        return Task(pair.prompt, last, (), self._cacheable(pair), len(pair.prompt))

    def _read_out(self) -> tuple[str, Sequence[int]]:
        return "answer_logits", self.answer_ids()

    def _read_plainly(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        ids, mask = pad_right([task.ids for task in tasks], self.pad_id, self.device)
        return list(self.answer_logits(ids, mask).cpu()[:, None])

    def _pool_values(self, values: Sequence[torch.Tensor]) -> list[float]:
        return self.pool(torch.cat([one[-1:] for one in values])).tolist()
