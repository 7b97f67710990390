"""The ranking choices of a checkpoint, small validated dataclasses stored in config.json under the key `tsarank`, and
what a family of models declares of itself.

A ranking model owns no weights of its own, so everything that makes a plain language model a reranker (prompt, score,
truncation, answer tokens) is a value here. See SEMANTICS in the documentation of each field for the papers' equations
and for where the published code differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, ClassVar, TypeVar

from .ranking_errors import InputError, ModelError


CONFIG_KEY = "tsarank"

PROMPT_STYLES = ("separate_space", "separate", "joined")
AGGREGATIONS = ("mean", "sum")
SCORE_STRATEGIES = ("difference", "softmax", "single_token")

OptionsT = TypeVar("OptionsT", bound="RankingOptions")


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """`value` as an `int`; NumPy's integers are whole numbers too, `True` is none.

    Raises `InputError` for anything else or a number below `least`; `what` names it in the message ("top_k").
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, got {value!r:.80}")
    return int(value)


def settle_whole_numbers(options: Any, *names: str, least: int = 1) -> None:
    """Checks fields of a dataclass, frozen or not, with `whole_number` and makes them `int`s, which JSON can hold.

    A field that is `None` stays so where its default is.
    """
    defaults = {field.name: field.default for field in fields(options)}
    for name in names:
        value = getattr(options, name)
        if value is not None or defaults[name] is not None:
            object.__setattr__(options, name, whole_number(value, name, least))


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")


def _check_template(name: str, template: Any, needed: tuple[str, ...]) -> None:
    if not isinstance(template, str):
        raise InputError(f"{name} must be a string, got {type(template).__name__}")
    for placeholder in needed:
        if template.count(placeholder) != 1:
            raise InputError(f"{name} must contain {placeholder} exactly once, got {template!r}")


@dataclass(frozen=True)
class RankingOptions:
    """Choices both model families share.

    Parameters:
        max_length (`int`): longest sequence in tokens, query included; only the document is cut to keep it.
        max_query_length (`int`): longest query in tokens; a longer one is cut on the right with a warning.
        add_bos (`bool`, *optional*): put the tokenizer's BOS in front; `None` does what the tokenizer does by itself.
    """

    family: ClassVar[str] = ""

    max_length: int = 512
    max_query_length: int = 256
    add_bos: bool | None = None

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "max_length", "max_query_length")
        if self.max_query_length >= self.max_length:
            raise InputError(
                f"max_query_length ({self.max_query_length}) must be smaller than max_length ({self.max_length}), "
                "or no token is left for the document"
            )
        if self.add_bos not in (None, True, False):
            raise InputError(f"add_bos must be true, false or null, got {self.add_bos!r}")

    def to_dict(self) -> dict[str, Any]:
        """The form that config.json holds, with the family's name."""
        return {"family": self.family, **asdict(self)}

    @classmethod
    def from_dict(cls: type[OptionsT], values: dict[str, Any]) -> OptionsT:
        """Reads what `to_dict` wrote. Raises `ModelError` for another family or an unknown field."""
        if not isinstance(values, dict):
            raise ModelError(f"config key {CONFIG_KEY!r} must be an object, got {type(values).__name__}")
        values = dict(values)
        family = values.pop("family", cls.family)
        if family != cls.family:
            raise ModelError(f"this checkpoint was saved for the family {family!r}, not {cls.family!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ModelError(
                f"unknown ranking option {', '.join(unknown)} in config key {CONFIG_KEY!r}; known: {', '.join(known)}"
            )
        return cls(**values)

    def override(self: OptionsT, **changes: Any) -> OptionsT:
        """A validated copy with some fields changed. Raises `InputError` naming an unknown field."""
        known = [field.name for field in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError(f"unknown ranking option {', '.join(unknown)}; known: {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True)
class Explanation:
    """Why a document got its score.

    Attributes:
        parts: text and value, in order: tokens of the query, answers, or whatever the family takes a score apart into;
            empty where it cannot.
        unit: what the values are: "log-probability" (at most 0) or "logit".
        score: the score itself, as in a ranking.
        rule: how the score follows from the parts, in words.
    """

    parts: tuple[tuple[str, float], ...]
    unit: str
    score: float
    rule: str


class Family:
    """What a family of ranking models declares of itself, for cards, the app and the trainers.

    Attributes:
        options_class: its options, which name the family and hold its default prompts.
        title: its name in a few words.
        description: one sentence that says what it is.
        citation: BibTeX of its paper.
        tag: its tag on the Hub.
        limits: what a card says of its limits, in sentences.
        published: published checkpoints by patterns of their names: the options each was trained with. The first
            match counts.
        default_for: the plain models that become this family where nobody names one, "decoder-only" or
            "encoder-decoder".
        scores_query_tokens: whether a score is made of the log-probabilities of the query's tokens: training then
            takes `query_logits`, and otherwise the scores of `forward`.
    """

    options_class: ClassVar[type[RankingOptions]]
    title: ClassVar[str] = ""
    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    tag: ClassVar[str] = "reranker"
    limits: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[dict[str, dict[str, Any]]] = {}
    default_for: ClassVar[tuple[str, ...]] = ()
    scores_query_tokens: ClassVar[bool] = False

    @classmethod
    def published_options(cls, name: str) -> dict[str, Any] | None:
        """The options of a published checkpoint named like a pattern of `published`, letter case aside, or `None`."""
        found = (options for pattern, options in cls.published.items() if fnmatchcase(name.lower(), pattern.lower()))
        return next(found, None)

    @classmethod
    def scoring(cls, options: Any) -> str:
        """How the score comes about, in a few sentences; `options` of `options_class`."""
        return cls.description

    @classmethod
    def unused_options(cls, options: Any) -> tuple[str, ...]:
        """Names of the options that change nothing beside these others."""
        return ()

    @classmethod
    def document_first(cls, options: Any, decoder_only: bool) -> bool:
        """Whether the document is read before the query, so that several queries may share that work."""
        return False

    def answer_tokens(self) -> dict[str, int]:
        """Ids of the tokens whose logits are read, by their texts; empty where a score is read off others."""
        return {}


@dataclass(frozen=True)
class QueryLikelihoodOptions(RankingOptions):
    """Choices of `TSARankModel` (TSARankLLM, Eq. 1): the likelihood of the query given the document.

    Parameters:
        document_template (`str`): the prompt P(d) of Eq. 1.
        prompt_style (`str`): how the query follows the prompt.
            `separate_space` (default): the query is tokenized by itself with one leading space and appended as ids, so
            that no token crosses the border; `separate`: without the space, as the published training code does;
            `joined`: prompt, space and query are tokenized as one string, as the published model card does.
        aggregation (`str`): `mean` (default) of the query tokens' log-probabilities, comparable across queries, or
            their `sum` (the logarithm of Eq. 1's product). Both order the documents of one query alike.
    """

    family: ClassVar[str] = "query_likelihood"

    document_template: str = "Document: {document} Query:"
    prompt_style: str = "separate_space"
    aggregation: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template("document_template", self.document_template, ("{document}",))
        _check_choice("prompt_style", self.prompt_style, PROMPT_STYLES)
        _check_choice("aggregation", self.aggregation, AGGREGATIONS)


@dataclass(frozen=True)
class LogitOptions(RankingOptions):
    """Choices of `TwolarModel` (TWOLAR, section 3.1): a score read off the logits of one position.

    Parameters:
        template (`str`): the input. The paper's has no trailing space; the published TWOLAR code has one, which T5's
            fast tokenizer turns into one more token, so checkpoints trained that way name it here.
        strategy (`str`): `difference` (default; TWOLAR): logit(true) − logit(false); `softmax` (monoT5, Eq. 1): the
            probability of true among the two; `single_token` (RankT5): the logit of one otherwise unused token.
        true_text, false_text (`str`): the two answers. Each must be one token where the answer stands.
        score_text (`str`): the token of `single_token`.
    """

    family: ClassVar[str] = "true_false_logits"

    max_length: int = 500
    max_query_length: int = 250
    template: str = "Query: {query} Document: {document} Relevant:"
    strategy: str = "difference"
    true_text: str = "true"
    false_text: str = "false"
    score_text: str = "<extra_id_10>"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template("template", self.template, ("{query}", "{document}"))
        _check_choice("strategy", self.strategy, SCORE_STRATEGIES)
        for name in ("true_text", "false_text", "score_text"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{name} must be a non-empty string, got {value!r}")
