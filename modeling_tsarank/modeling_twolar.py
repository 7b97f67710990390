"""TWOLAR: a pointwise reranker that encodes query and document together and scores by two logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from .modeling_ranker import RankerModel
from .ranking_engine import readable_length
from .ranking_errors import InputError, ModelError
from .ranking_options import Explanation, RankingOptions, check_choice, check_template
from .ranking_text import EncodedPair, Prompt, TextEncoder, clean_text, split_around
from .user_text import Span


SCORE_STRATEGIES = ("difference", "softmax", "single_token")


@dataclass(frozen=True)
class LogitOptions(RankingOptions):
    """Options of `TwolarModel` (TWOLAR, section 3.1): a score from the logits at one position.

    Parameters:
        template (`str` or a list of `str`): the input; each string of a list is tokenized separately. The paper's has
            no trailing space; the published TWOLAR code has one, which T5's tokenizer turns into one more token.
        strategy (`str`): `difference` (default; TWOLAR): logit(true) − logit(false); `softmax` (monoT5, Eq. 1): the
            probability of true among the two; `single_token` (RankT5): the logit of one token.
        true_text, false_text (`str` or `int`): the two answers. Each must be one token at the answer's position; a
            number is a token id.
        score_text (`str` or `int`): the token of `single_token`.
        answer_prefix (`str`, *optional*): the text between template and answer; `None` is a space, unless the
            template ends with white space or a control token.
        instruction (`str`): the value of the template's `{instruction}`.
        instruction_template (`str`): the format of a non-empty instruction in the template.
    """

    family: ClassVar[str] = "true_false_logits"

    max_length: int = 500
    max_query_length: int = 250
    template: str | tuple[str, ...] = "Query: {query} Document: {document} Relevant:"
    strategy: str = "difference"
    true_text: str | int = "true"
    false_text: str | int = "false"
    score_text: str | int = "<extra_id_10>"
    answer_prefix: str | None = None
    instruction: str = ""
    instruction_template: str = "{instruction}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.template, list):  # as in JSON
            object.__setattr__(self, "template", tuple(self.template))
        if not all(isinstance(piece, str) for piece in self.pieces):
            raise InputError(f"template must be a string or a list of strings, got {self.template!r:.80}")
        check_template("template", self.whole_template, ("{query}", "{document}"))
        check_template("instruction_template", self.instruction_template, ("{instruction}",))
        check_choice("strategy", self.strategy, SCORE_STRATEGIES)
        for name in ("true_text", "false_text", "score_text"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                raise InputError(f"{name} must be a non-empty string or a token id, got {value!r}")
        for name in ("answer_prefix", "instruction"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("answer_prefix", None):
                raise InputError(f"{name} must be a string, got {value!r:.80}")
        if self.instruction and "{instruction}" not in self.whole_template:
            raise InputError("instruction: this model's template has no placeholder {instruction}")

    @property
    def pieces(self) -> tuple[str, ...]:
        """The strings of the template, each tokenized separately."""
        return self.template if isinstance(self.template, tuple) else (self.template,)

    @property
    def whole_template(self) -> str:
        """The template as one string."""
        return "".join(self.pieces)


_FIELD = re.compile(r"(\{query\}|\{document\}|\{instruction\})")


class TemplateEncoder(TextEncoder):
    """Token ids for `TwolarModel`: one template with query and document; only the document is truncated."""

    options: LogitOptions

    def __init__(self, tokenizer: Any, options: LogitOptions, context: int | None = None) -> None:
        super().__init__(tokenizer, options, context)
        self._instruction = clean_text(options.instruction, "the instruction")
        place = options.instruction_template if self._instruction else ""
        # Fixed texts and placeholders of each piece, alternating.
        self._pieces = [_FIELD.split(piece.replace("{instruction}", place)) for piece in options.pieces]
        own = [*("".join(piece[::2]) for piece in self._pieces), self._instruction]
        self._leave_room(len(self.leading) + len(self.trailing) + sum(len(self._ids(text)) for text in own))
        # Whether the template puts the document before the query.
        self.document_first = options.whole_template.index("{document}") < options.whole_template.index("{query}")
        before_query = next(piece[piece.index("{query}") - 1] for piece in self._pieces if "{query}" in piece)
        # Tokenizers merge this white space with most queries, but not with all ("5 ships", where digits are separate).
        self._loose = len(before_query) - len(before_query.rstrip())

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """(query, document) texts, already cleaned, as ids with the tokenizer's own special tokens around them."""
        filled = [self._fill(query, document) for query, document in pairs]
        result = []
        for (uncut, places), (_, spans) in zip(self._encode(filled), filled, strict=True):
            document_span, query_span = spans["{document}"], spans["{query}"]
            ids, offsets = self._shorten_query(uncut, places, query_span)
            prompt = split_around(ids, offsets, *document_span)
            prompt = Prompt((*self.leading, *prompt.before), prompt.document, (*prompt.after, *self.trailing))
            source = self._source(ids, offsets, document_span, query_span)
            cut = tuple(prompt.cut(self.options.max_length))
            left_out = len(prompt) - len(cut), len(uncut) - len(ids)
            result.append(EncodedPair(cut, (), source, *left_out))
        return result

    def prompts(self, documents: Sequence[str]) -> list[Prompt]:
        """The untruncated beginning of each document's pairs: everything before the query and its leading white space.

        Empty if the query comes first.
        """
        return [pair.source for pair in self.pairs([("a", document) for document in documents])]

    def _source(self, ids: Sequence[int], offsets: Sequence[Span], document_span: Span, query_span: Span) -> Prompt:
        if not self.document_first:
            return Prompt((), (), ())
        border = len(ids)
        while border and offsets[border - 1][1] > query_span[0] - self._loose:
            border -= 1
        prompt = split_around(ids[:border], offsets[:border], *document_span)
        return Prompt((*self.leading, *prompt.before), prompt.document, prompt.after)

    def _fill(self, query: str, document: str) -> tuple[list[str], dict[str, Span]]:
        """The filled pieces, and the character span of each placeholder's value in their joined text."""
        values = {"{query}": query, "{document}": document, "{instruction}": self._instruction}
        pieces: list[str] = []
        spans: dict[str, Span] = {}
        at = 0
        for piece in self._pieces:
            # Filled by position: a document may itself contain "{query}".
            texts = [values[part] if place % 2 else part for place, part in enumerate(piece)]
            for part, text in zip(piece, texts, strict=True):
                spans |= {part: (at, at + len(text))} if part in values else {}
                at += len(text)
            pieces.append("".join(texts))
        return pieces, spans

    def _encode(self, filled: Sequence[tuple[list[str], dict[str, Span]]]) -> list[tuple[list[int], list[Span]]]:
        """Ids of the pieces of each pair, joined, and their offsets in the joined text."""
        texts, own, starts = [], [], []
        for pieces, spans in filled:
            at = 0
            for piece in pieces:
                texts.append(piece)
                own.append([(start - at, end - at) for start, end in spans.values() if at <= start < at + len(piece)])
                starts.append(at)
                at += len(piece)
        encoded = zip(self._user_text.encode(texts, own), starts, strict=True)
        result: list[tuple[list[int], list[Span]]] = []
        for (ids, offsets), at in encoded:
            if at == 0:
                result.append((ids, offsets))
            else:
                result[-1][0].extend(ids)
                result[-1][1].extend((start + at, end + at) for start, end in offsets)
        return result

    def _shorten_query(self, ids: list[int], offsets: list[Span], span: Span) -> tuple[list[int], list[Span]]:
        parts = split_around(ids, offsets, *span)
        end = len(parts.before) + len(parts.document)
        start = end - max(len(parts.document) - self.options.max_query_length, 0)
        return ids[:start] + ids[end:], offsets[:start] + offsets[end:]


class TwolarModel(RankerModel):
    """A score from the logits at one position (TWOLAR, section 3.1).

    On a T5-like model this is the decoder's first step; on a decoder-only model the prompt's last token. There, pairs
    share the states of the template's beginning: with "Document: {document} Query: {query} Relevant:" a document is
    encoded once for all its queries, and its states can be cached, as in `TSARankModel`. Strategies:
    `difference` logit(true) − logit(false); `softmax` p(true) of the two (monoT5); `single_token` one logit (RankT5).
    """

    options_class = LogitOptions
    title = "True/false logits"
    description = "A reranker that scores query and document together by the logits of an answer."
    tag = "true-false-reranker"
    default_for = ("encoder-decoder",)
    limits = ("Scores are not probabilities unless the strategy is `softmax`, and even then they are not calibrated.",)
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
            "single_token": f"the logit of the token {options.score_text}, unbounded",
        }
        return (
            "The model gets query and document together, and the score comes from the logits at one position (TWOLAR, "
            f"section 3.1). The strategy is `{options.strategy}`: {how[options.strategy]}. Higher is more relevant."
        )

    @classmethod
    def unused_options(cls, options: LogitOptions) -> tuple[str, ...]:
        unused = ("true_text", "false_text") if options.strategy == "single_token" else ("score_text",)
        instructed = "{instruction}" in options.whole_template
        return unused if instructed else (*unused, "instruction", "instruction_template")

    @classmethod
    def document_first(cls, options: LogitOptions, decoder_only: bool) -> bool:
        template = options.whole_template
        return decoder_only and template.index("{document}") < template.index("{query}")

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        return AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM

    def _make_encoder(self) -> TemplateEncoder:
        self.answer_ids()  # raises now, not at the first score, if an answer is not one token
        context = None if self.config.is_encoder_decoder else readable_length(self.backbone)
        return TemplateEncoder(self.tokenizer, self.options, context)

    # ---- the answer's tokens ---------------------------------------------------------------------

    def answer_ids(self) -> list[int]:
        """Vocabulary ids of the answer tokens at the answer's position: [true, false], or [score token].

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

    def _special_or_single(self, text: str | int) -> int:
        if isinstance(text, int):
            if not 0 <= text < len(cast(Any, self.get_input_embeddings()).weight):
                raise ModelError(f"the answer {text} is not a token id of this model")
            return text
        added = self.tokenizer.get_added_vocab()
        ids = [added[text]] if text in added else self._answer_in_context(text)
        if len(ids) != 1 or (ids[0] == self.tokenizer.unk_token_id and text not in added):
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise ModelError(
                f"the answer {text!r} is not a single token of this tokenizer but {pieces}; "
                "name another one in the ranking options (true_text, false_text, score_text)"
            )
        return ids[0]

    def _answer_in_context(self, text: str) -> list[int]:
        def ids(string: str) -> list[int]:
            return self.tokenizer(string, add_special_tokens=False)["input_ids"]

        # An encoder-decoder's decoder starts with the answer.
        tail = "" if self.config.is_encoder_decoder else _FIELD.split(self.options.pieces[-1])[-1][-40:]
        border = self.options.answer_prefix
        if border is None:
            apart = not tail or tail[-1].isspace() or tail.endswith(tuple(self.tokenizer.get_added_vocab()))
            border = "" if apart else " "
        before, whole = ids(tail), ids(f"{tail}{border}{text}")
        return whole[len(before) :] if before and whole[: len(before)] == before else ids(border + text)

    def pool(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if self.options.strategy == "difference":
            return logits[:, 0] - logits[:, 1]
        return (logits.softmax(-1) if self.options.strategy == "softmax" else logits)[:, 0]

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
            "difference": "the first logit minus the second",
            "softmax": "the first one's probability of the two",
            "single_token": "the logit itself",
        }[self.options.strategy]
        return Explanation(tuple(parts.items()), "logit", score, rule)

    def answer_tokens(self) -> dict[str, int]:
        ids = self.answer_ids()
        return dict(zip(self.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))

    def _read_out(self) -> tuple[str, Sequence[int]]:
        return "answer_logits", self.answer_ids()
