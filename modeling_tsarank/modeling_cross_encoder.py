"""Cross-encoders: encoders and decoder-only models that score a pair with their own sequence-classification head."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import ModelOutput

from .modeling_ranker import RankerModel
from .ranking_engine import Task, logits_at, readable_length
from .ranking_errors import ModelError
from .ranking_options import RankingOptions, check_choice, check_template, whole_number
from .ranking_scoring import AnswerHead, accepts, align_left, check_attention, has_plain_rows
from .ranking_text import EncodedPair, Prompt, TextEncoder, split_around
from .user_text import TOKENIZE


ORDERS = ("query_first", "document_first")
# Names of two labels, irrelevant and relevant. With other names, the relevant one is unknown.
_TWO_LABELS = {("label_0", "label_1"), ("0", "1"), ("no", "yes"), ("false", "true"), ("irrelevant", "relevant")}
# Maximum length if neither tokenizer nor model has a limit; some tokenizers have 10^30.
_DEFAULT_LENGTH, _NO_LIMIT = 512, 10**7


@dataclass(frozen=True)
class CrossEncoderOptions(RankingOptions):
    """Options of `CrossEncoderModel`: the two texts that the tokenizer joins to a pair.

    For `max_length`, the longer text is truncated on the right (`longest_first`), as in sentence-transformers.

    Parameters:
        query_template, document_template (`str`): the template of each text. By default nothing is added; RankLLaMA
            has "query: {query}" and "document: {document}". It may contain control tokens, such as an EOS.
        order (`str`): which text comes first, `query_first` (default) or `document_first`. With the latter, the
            states of documents can be cached for a decoder-only model.
    """

    family: ClassVar[str] = "cross_encoder"

    max_length: int = _DEFAULT_LENGTH
    max_query_length: int = _DEFAULT_LENGTH - 1
    query_template: str = "{query}"
    document_template: str = "{document}"
    order: str = "query_first"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template("query_template", self.query_template, ("{query}",))
        check_template("document_template", self.document_template, ("{document}",))
        check_choice("order", self.order, ORDERS)

    def override(self, **changes: Any) -> CrossEncoderOptions:
        """As in every family; a smaller `max_length` alone also lowers `max_query_length`."""
        if "max_length" in changes and "max_query_length" not in changes:
            length = whole_number(changes["max_length"], "max_length", 2)
            changes["max_query_length"] = min(self.max_query_length, length - 1)
        return super().override(**changes)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit into `room`: the longer one is truncated until both are equally long."""
    if first + second <= room:
        return first, second
    shorter, longer = min(first, second), max(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


class PairEncoder(TextEncoder):
    """Token ids for `CrossEncoderModel`: two texts, joined as the tokenizer joins a pair.

    Attributes:
        separator: the token after which token types are 1 instead of 0, if the tokenizer has them, else empty;
            `None` if they follow another rule.
    """

    options: CrossEncoderOptions
    separator: list[int] | None

    def __init__(self, tokenizer: Any, options: CrossEncoderOptions, context: int | None = None) -> None:
        super().__init__(tokenizer, options, context)
        self._room = options.max_length - len(self.leading) - len(self._middle) - len(self.trailing)
        if self._room < 2:
            raise ModelError(f"max_length ({options.max_length}) leaves no tokens for query and document")

    def _special_tokens(self, options: RankingOptions) -> tuple[list[int], list[int]]:
        """The special tokens before and after a pair; also sets those between the two texts."""
        single = self._ids("a")
        given = {name: value for name, value in TOKENIZE.items() if name != "return_token_type_ids"}
        pair = self.tokenizer("a", "a", **{**given, "add_special_tokens": True})
        ids, types = pair["input_ids"], pair.get("token_type_ids") or []
        places = [i for i in range(len(ids)) if ids[i : i + len(single)] == single]
        if len(places) != 2:
            raise ModelError("the tokenizer does not support pairs of texts")
        start, second = places[0] + len(single), places[1]
        leading, middle, trailing = ids[: places[0]], ids[start:second], ids[second + len(single) :]
        usual = len(middle) == 1 and types == [0] * second + [1] * (len(ids) - second)
        self.separator = (middle if usual else None) if any(types) else []
        bos = self.tokenizer.bos_token_id
        if options.add_bos is True and bos is None:
            raise ModelError("add_bos is true, but this tokenizer has no BOS token")
        if options.add_bos is True and bos not in leading:
            leading = [bos, *leading]
        elif options.add_bos is False:
            leading, middle = ([token for token in part if token != bos] for part in (leading, middle))
        self._middle = middle
        return leading, trailing

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """(query, document) texts, already cleaned, as ids. Equal texts share one tokenization."""
        options = self.options
        queries = self._filled(options.query_template, "{query}", [query for query, _ in pairs])
        documents = self._filled(options.document_template, "{document}", [document for _, document in pairs])
        result = []
        for query, document in pairs:
            asked, told = queries[query], documents[document]
            longest = len(asked) - max(len(asked.document) - options.max_query_length, 0)
            if options.order == "query_first":
                length, room = longest_first(len(asked), len(told), self._room)
            else:
                room, length = longest_first(len(told), len(asked), self._room)
            if length > longest:
                length, room = longest, self._room - longest
            query_ids, document_ids = asked.cut(length), told.cut(room)
            first, second = query_ids, document_ids
            if options.order == "document_first":
                first, second = second, first
            ids = (*self.leading, *first, *self._middle, *second, *self.trailing)
            left = len(told) - len(document_ids), len(asked) - len(query_ids)
            result.append(EncodedPair(ids, (), self._source(told), *left))
        return result

    def prompts(self, documents: Sequence[str]) -> list[Prompt]:
        """The untruncated beginning of each document's pairs; empty if the query comes first."""
        found = self._filled(self.options.document_template, "{document}", documents)
        return [self._source(found[document]) for document in documents]

    def _source(self, document: Prompt) -> Prompt:
        if self.options.order == "query_first":
            return Prompt((), (), ())
        return Prompt((*self.leading, *document.before), document.document, (*document.after, *self._middle))

    def _filled(self, template: str, field: str, texts: Sequence[str]) -> dict[str, Prompt]:
        head, tail = template.split(field)
        distinct = list(dict.fromkeys(texts))
        spans = [(len(head), len(head) + len(text)) for text in distinct]
        encoded = self._user_text.encode([head + text + tail for text in distinct], [[span] for span in spans])
        return {
            text: split_around(ids, offsets, *span)
            for text, span, (ids, offsets) in zip(distinct, spans, encoded, strict=True)
        }


class ScoreHead(torch.nn.Module):
    """A decoder with its sequence-classification head `score`, applied only at the wanted positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.base, score = model.config, model.base_model, model.score
        self.score = AnswerHead(score, range(len(score.weight))) if has_plain_rows(score) else score

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **inputs: Any) -> ModelOutput:
        """`logits` `(kept positions, labels)` of `(rows, length)` ids; `logits_to_keep` is boolean."""
        hidden = self.base(input_ids=input_ids, **inputs).last_hidden_state
        return ModelOutput(logits=self.score(hidden[logits_to_keep]))


def pair_logits(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, separator: Sequence[int]
) -> torch.Tensor:
    """Logits `(pairs, labels)` of a sequence-classification model, as from its own `forward`.

    Parameters:
        input_ids, attention_mask: `(pairs, length)`, right-padded.
        separator: the token after which token types are 1 instead of 0, for a model that has them; else empty.
    """
    check_attention(model)
    ends = [(input_ids == token).long() for token in separator]
    types = [(end.cumsum(-1) - end > 0).long() * attention_mask for end in ends]
    inputs = {"token_type_ids": types[0]} if types else {}
    logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask, **inputs).logits
    return logits


class CrossEncoderModel(RankerModel):
    """The score of a checkpoint's own sequence-classification head, for any architecture with one in transformers.

    An encoder (monoBERT; Nogueira and Cho, 2019) processes the tokenizer's pair of query and document, a decoder-only
    model (RankLLaMA; Ma et al., 2023) has the head on the last token. One label is the score itself; with two, the
    score is the second's logit minus the first's, which gives the same order as the probability of the second.
    """

    options_class = CrossEncoderOptions
    title = "Cross-encoder"
    description = "A reranker that scores query and document together by a classification head."
    tag = "sequence-classification"
    default_for = ("sequence-classification",)
    own_head = True
    limits = ("Scores are logits, not probabilities; their range differs from model to model.",)
    citation = """\
@article{nogueira2019passage,
  title = {Passage Re-ranking with {BERT}},
  author = {Nogueira, Rodrigo and Cho, Kyunghyun},
  journal = {arXiv preprint arXiv:1901.04085},
  year = {2019},
  url = {https://arxiv.org/abs/1901.04085}
}"""
    options: CrossEncoderOptions

    def __init__(self, config: Any, backbone: Any = None) -> None:
        super().__init__(config, backbone)
        labels: Any = self.backbone.config.id2label
        names = tuple(str(labels[key]).lower() for key in sorted(labels))
        if len(names) > 2 or (len(names) == 2 and names not in _TWO_LABELS):
            raise ModelError(
                f"this {type(self.backbone).__name__} has {len(names)} labels ({', '.join(names[:3])}"
                f"{', …' if len(names) > 3 else ''}), of which none is known to mean relevant; a ranker has one label"
            )
        # All transformers models with a head named `score` are decoders and apply it to the last token.
        text = self.backbone.config.get_text_config()
        self._is_decoder = (
            isinstance(getattr(self.backbone, "score", None), torch.nn.Linear)
            and type(self.backbone).__module__.startswith("transformers.models.")
            and getattr(text, "is_causal", None) is not False
            and not getattr(text, "use_bidirectional_attention", None)
        )

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        return AutoModelForSequenceClassification

    @classmethod
    def scoring(cls, options: CrossEncoderOptions) -> str:
        return (
            "The model gets query and document as a pair, and the score is the logit of its classification "
            "head; of two labels, that of the second less that of the first. Higher is more relevant."
        )

    @classmethod
    def document_first(cls, options: CrossEncoderOptions, decoder_only: bool) -> bool:
        return decoder_only and options.order == "document_first"

    @classmethod
    def default_options(cls, backbone: Any, tokenizer: Any) -> CrossEncoderOptions:
        limits = tokenizer.model_max_length, _longest_text(backbone) or sys.maxsize
        length = min(limits) if min(limits) < _NO_LIMIT else _DEFAULT_LENGTH
        return CrossEncoderOptions(max_length=length, max_query_length=length - 1)

    @property
    def plain_cross_encoder(self) -> int | None:  # type: ignore[override]  # it depends on the options
        default, mine = CrossEncoderOptions(), self.options
        names = ("query_template", "document_template", "order", "add_bos")
        return mine.max_length if all(getattr(mine, name) == getattr(default, name) for name in names) else None

    def _make_encoder(self) -> PairEncoder:
        encoder = PairEncoder(self.tokenizer, self.options, _longest_text(self.backbone))
        if not accepts(self.backbone.forward, "token_type_ids"):
            encoder.separator = []
        if encoder.separator is None:
            raise ModelError("the tokenizer's token types are not 0 up to a one-token separator and 1 after it")
        return encoder

    @property
    def on_last_token(self) -> bool:
        """Whether the head is applied to a decoder's last token, so that pairs can share a prefix."""
        return self._is_decoder and not self.encoder.separator

    def _last(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Position of the head `(rows,)`: as in transformers, the last token other than the padding token.

        That token may also end a text: some tokenizers pad with EOS.
        """
        pad = self.backbone.config.get_text_config().pad_token_id
        places = torch.arange(ids.shape[1], device=ids.device) * mask
        return places.argmax(-1) if pad is None else (places * (ids != pad)).argmax(-1)

    def _task(self, pair: EncodedPair) -> Task:
        ids, at = pair.prompt, len(pair.prompt) - 1
        if self.on_last_token:
            at = int(self._last(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)))
        return Task(ids[: at + 1], (at,), (), self._cacheable(pair), at + 1)

    def _read_out(self) -> tuple[str, Sequence[int]]:
        return ("class_logits", ()) if self.on_last_token else ("pair_logits", self.encoder.separator)

    def answer_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = align_left(mask, input_ids, mask)
        if not self.on_last_token:
            return pair_logits(self.backbone, ids, mask, self.encoder.separator)
        keep = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, self._last(ids, mask)[:, None], True)
        return logits_at(ScoreHead(self.backbone), ids, keep)

    def pool(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def _longest_text(backbone: Any) -> int | None:
    """Maximum tokens of a text; RoBERTa-like models count positions from the padding's plus one."""
    limit = readable_length(backbone)
    tables = (part for name, part in backbone.named_modules() if name.endswith("position_embeddings"))
    first = next((getattr(table, "padding_idx", None) for table in tables), None)
    return limit if limit is None or first is None else limit - first - 1
