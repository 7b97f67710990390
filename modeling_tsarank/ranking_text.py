"""From text to token ids: prompts in which only the document is truncated.

Truncation is at token level, without decoding and encoding again. The span of the document in a tokenized prompt comes
from the tokenizer's character offsets, so an untruncated prompt is exactly the tokenization of its whole text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .ranking_errors import InputError, ModelError
from .ranking_options import RankingOptions
from .user_text import TOKENIZE, UserText


logger = logging.getLogger(__name__)

TEXT_FIELDS = ("text", "contents", "content", "passage")
"""Field names of a document's text, in order of preference; a field that is null counts as absent."""
TITLE_FIELDS = ("title",)


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt in three parts; `cut` truncates only the middle one."""

    before: tuple[int, ...]
    document: tuple[int, ...]
    after: tuple[int, ...]

    def cut(self, limit: int) -> list[int]:
        """The whole prompt's ids with at most `limit` tokens in total; the document is truncated on the right."""
        room = max(limit - len(self.before) - len(self.after), 0)
        return [*self.before, *self.document[:room], *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.document) + len(self.after)


@dataclass(frozen=True)
class EncodedPair:
    """One scoring task: the prompt's ids, and the ids whose probability is the score (empty for TWOLAR)."""

    prompt: tuple[int, ...]
    query: tuple[int, ...] = ()
    # The untruncated part before the query: the same for every query of a document.
    source: Prompt = Prompt((), (), ())
    # Truncated tokens of the document (`max_length`).
    cut: int = 0
    # Truncated tokens of the query (`max_query_length`).
    query_cut: int = 0


CUT_WARNING = "%d of %d %s were truncated: %s"


def warn_of_cuts(cut: int, total: int, limit: int, of: str = "max_length") -> None:
    """One warning, if any texts were truncated, with their number and the limit, which is set by the option `of`."""
    what, rule = {
        "max_length": ("documents", f"prompt, query and document have at most {limit} tokens together"),
        "max_query_length": ("queries", f"each has at most {limit} tokens"),
        "passage_words": ("documents", f"{limit} words of each are shown"),
    }[of]
    if cut:
        logger.warning(CUT_WARNING, cut, total, what, f"{rule} ({of})")


def count_cuts(
    pairs: Sequence[tuple[str, str]], encoded: Sequence[EncodedPair], options: RankingOptions
) -> dict[str, int]:
    """Numbers of truncated documents and queries, each counted once, with a warning for either."""
    documents = {document for (_, document), ids in zip(pairs, encoded, strict=True) if ids.cut}
    queries = {query for (query, _), ids in zip(pairs, encoded, strict=True) if ids.query_cut}
    warn_of_cuts(len(documents), len({document for _, document in pairs}), options.max_length)
    warn_of_cuts(len(queries), len({query for query, _ in pairs}), options.max_query_length, "max_query_length")
    return {"cut_documents": len(documents), "cut_queries": len(queries)}


def clean_text(text: Any, what: str) -> str:
    """`text` without outer white space and lone surrogates, which no tokenizer accepts.

    Raises `InputError` if it is not a string; `what` is its name in the message ("document 3").
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, got {type(text).__name__}")
    text = text.strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        logger.warning("%s has lone surrogates (broken Unicode); each is replaced by U+FFFD", what)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_query(query: Any, what: str = "the query") -> str:
    """`clean_text` for a query, which must not be empty: raises `InputError` if it is."""
    query = clean_text(query, what)
    if not query:
        raise InputError(f"{what} is empty; a query needs at least one character that is not white space")
    return query


def document_text(document: Any, what: str = "a document") -> str:
    """A document's text: a string, or a mapping with a field of `TEXT_FIELDS` and optionally `title`, joined by a
    space as BEIR does."""
    if not isinstance(document, Mapping):
        return clean_text(document, what)
    given = {name: value for name, value in document.items() if value is not None}
    field = next((name for name in TEXT_FIELDS if name in given), None)
    if field is None:
        raise InputError(f"{what} has no field 'text'; its fields are: {', '.join(map(str, given)) or 'none'}")
    title = next((given[name] for name in TITLE_FIELDS if name in given), "")
    return f"{clean_text(title, f'the title of {what}')} {clean_text(given[field], f'the {field} of {what}')}".strip()


def document_list(documents: Any) -> list[Any]:
    """Documents as a list. Raises `InputError` for a single text, a mapping or a table, whose letters, keys or columns
    would be ranked, for a set, which has no order, and for values that cannot be iterated."""
    if isinstance(documents, str | bytes | Mapping | set | frozenset) or hasattr(documents, "columns"):
        raise InputError(f"documents must be a list of texts, got a single {type(documents).__name__}")
    if not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of texts, got {type(documents).__name__}")
    return list(documents)


def clean_pairs(pairs: Sequence[Any]) -> list[tuple[str, str]]:
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
        logger.warning("%d of %d documents are empty; they are scored as empty texts", empty, len(cleaned))
    return cleaned


def split_around(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int) -> Prompt:
    """Splits token ids into those before, inside and after the characters `start:end`; a token that touches the span
    is inside. Special tokens have the empty offset (0, 0) and so never are."""
    first = 0
    while first < len(ids) and not (offsets[first][1] > start and offsets[first][0] < end):
        first += 1
    last = len(ids)
    while last > first and not (offsets[last - 1][1] > start and offsets[last - 1][0] < end):
        last -= 1
    if first == len(ids):  # an empty document: nothing to cut
        return Prompt(tuple(ids), (), ())
    return Prompt(tuple(ids[:first]), tuple(ids[first:last]), tuple(ids[last:]))


class TextEncoder:
    """The base of all encoders: a fast tokenizer, its special tokens, the length limits."""

    def __init__(self, tokenizer: Any, options: RankingOptions, context: int | None = None) -> None:
        if context is not None and options.max_length > context:
            raise ModelError(
                f"max_length is {options.max_length}, but the model supports {context} tokens; lower max_length"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json); ranking needs character offsets"
            )
        self.tokenizer, self.context, self.options = tokenizer, context, options
        try:
            self._user_text = UserText(tokenizer)
            self.leading, self.trailing = self._special_tokens(options)
        except ModelError:
            raise
        except Exception as error:  # fields of tokenizer_config.json are not validated before their use
            raise ModelError(f"the tokenizer cannot encode a text: {type(error).__name__}: {error}") from error

    def _special_tokens(self, options: RankingOptions) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text: the tokenizer's own, or according to `add_bos`."""
        plain = self._ids("a")
        wrapped = self.tokenizer("a", **{**TOKENIZE, "add_special_tokens": True})["input_ids"]
        at = next((i for i in range(len(wrapped)) if wrapped[i : i + len(plain)] == plain), 0)
        leading, trailing = wrapped[:at], wrapped[at + len(plain) :]
        bos = self.tokenizer.bos_token_id
        if options.add_bos is True:
            if bos is None:
                raise ModelError("add_bos is true, but this tokenizer has no BOS token")
            leading = leading if bos in leading else [bos, *leading]
        elif options.add_bos is False:
            leading = [token for token in leading if token != bos]
        return leading, trailing

    def _leave_room(self, fixed: int) -> None:
        limits = self.options
        if fixed + limits.max_query_length >= limits.max_length:
            raise ModelError(
                f"the prompt's own {fixed} tokens and max_query_length ({limits.max_query_length}) leave no token "
                f"for the document in max_length ({limits.max_length})"
            )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, **TOKENIZE)["input_ids"]


def cacheable_ids(prompt: Prompt, options: RankingOptions) -> tuple[int, ...]:
    """The ids of a document's untruncated prompt whose states should be cached, for any query.

    For a document that fits with the longest allowed query: the whole prompt except its last token, which is processed
    with the query because it predicts the query's first token. For a longer one, which long queries truncate more than
    short ones: the most that any query could leave; the states of a shorter rest are the first of these.
    """
    if len(prompt) + options.max_query_length <= options.max_length:
        return tuple(prompt.cut(len(prompt))[:-1])
    room = options.max_length - 1 - len(prompt.before) - len(prompt.after)
    ids = (*prompt.before, *prompt.document[: max(room, 0)])
    return ids if prompt.after else ids[:-1]
