"""From text to token ids: prompts whose document, and nothing else, is cut to length.

Everything is cut at token level and nothing is decoded and encoded again. The place of the document inside a tokenized
prompt is read off the tokenizer's character offsets, so an uncut prompt is exactly the tokenization of its whole text.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .ranking_errors import InputError, ModelError
from .ranking_options import LogitOptions, QueryLikelihoodOptions, RankingOptions
from .user_text import TOKENIZE, Span, UserText


logger = logging.getLogger(__name__)

TEXT_FIELDS = ("text", "contents", "content")
"""What a document's text is called, the first one preferred; a field that is null counts as absent."""
TITLE_FIELDS = ("title",)


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt in three parts; `cut` may shorten only the middle one."""

    before: tuple[int, ...]
    document: tuple[int, ...]
    after: tuple[int, ...]

    def cut(self, limit: int) -> list[int]:
        """The whole prompt's ids with at most `limit` tokens in all, by shortening the document on the right."""
        room = max(limit - len(self.before) - len(self.after), 0)
        return [*self.before, *self.document[:room], *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.document) + len(self.after)


@dataclass(frozen=True)
class EncodedPair:
    """One scoring task: the ids read before the answer and the ids whose probability is asked (empty for TWOLAR)."""

    prompt: tuple[int, ...]
    query: tuple[int, ...] = ()
    # What stands in front of the query, before it was cut to length: the same for every query of a document.
    source: Prompt = Prompt((), (), ())
    # Tokens of the document that were left out to keep `max_length`.
    cut: int = 0
    # Tokens of the query that were left out to keep `max_query_length`.
    query_cut: int = 0


# Set by what scores in many calls and reports one count for all of them.
_CUTS_REPORTED: ContextVar[bool] = ContextVar("cuts_reported", default=False)


@contextlib.contextmanager
def cuts_reported() -> Iterator[None]:
    """Within it no call warns of cut documents: the caller adds up `last_stats["cut_documents"]` and tells."""
    token = _CUTS_REPORTED.set(True)
    try:
        yield
    finally:
        _CUTS_REPORTED.reset(token)


def warn_of_cuts(cut: int, documents: int, max_length: int) -> None:
    """One warning with the number of documents that were cut, if any were."""
    if cut and not _CUTS_REPORTED.get():
        logger.warning(
            "%d of %d documents were cut: prompt, query and document have at most %d tokens together (max_length)",
            cut,
            documents,
            max_length,
        )


# Set while `encode_counted` counts cut queries; the encoder warns of the first one elsewhere, as in training.
_QUERIES_COUNTED: ContextVar[bool] = ContextVar("queries_counted", default=False)


def encode_counted(encoder: Any, pairs: Sequence[tuple[str, str]]) -> tuple[list[EncodedPair], dict[str, int]]:
    """`encoder.pairs`, and how many documents and queries were cut, each counted once; a warning tells of either."""
    token = _QUERIES_COUNTED.set(not _CUTS_REPORTED.get())
    try:
        encoded = encoder.pairs(pairs)
    finally:
        _QUERIES_COUNTED.reset(token)
    documents = {document: False for _, document in pairs}
    queries = {query: False for query, _ in pairs}
    for (query, document), pair in zip(pairs, encoded, strict=True):
        documents[document] |= bool(pair.cut)
        queries[query] |= bool(pair.query_cut)
    cut, longest = sum(queries.values()), encoder.options.max_query_length
    warn_of_cuts(sum(documents.values()), len(documents), encoder.options.max_length)
    if cut and not _CUTS_REPORTED.get():
        logger.warning("%d of %d queries were cut to %d tokens (max_query_length)", cut, len(queries), longest)
    return encoded, {"cut_documents": sum(documents.values()), "cut_queries": cut}


def clean_text(text: Any, what: str) -> str:
    """`text` without outer white space and without lone surrogates, which no tokenizer accepts.

    Raises `InputError` if it is not a string; `what` names it in the message ("document 3").
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, got {type(text).__name__}")
    text = text.strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        logger.warning("%s holds lone surrogates (broken Unicode); each is read as U+FFFD", what)
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
    return f"{clean_text(title, f'the title of {what}')} {clean_text(given[field], what)}".strip()


def document_list(documents: Any) -> list[Any]:
    """Documents as a list. Raises `InputError` for a single text, a mapping or a table, whose letters, keys or columns
    would be ranked, for a set, which has no places, and for what cannot be gone through."""
    if isinstance(documents, str | bytes | Mapping | set | frozenset) or hasattr(documents, "columns"):
        raise InputError(f"documents must be a list of texts, got a single {type(documents).__name__}")
    if not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of texts, got {type(documents).__name__}")
    return list(documents)


def _split_around(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int) -> Prompt:
    """Splits token ids into those before, inside and after the characters `start:end`; a token that touches the span
    belongs to it. Special tokens carry the empty offset (0, 0) and so never do."""
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
    """What both families share: a fast tokenizer, its special tokens, the length limits."""

    def __init__(self, tokenizer: Any, options: RankingOptions, context: int | None = None) -> None:
        if context is not None and options.max_length > context:
            raise ModelError(
                f"max_length is {options.max_length}, but this model reads at most {context} tokens; lower max_length"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} is no fast tokenizer (tokenizer.json); ranking needs character offsets"
            )
        self.tokenizer, self.context = tokenizer, context
        try:
            self._user_text = UserText(tokenizer)
            self.leading, self.trailing = self._special_tokens(options)
        except ModelError:
            raise
        except Exception as error:  # nobody checks the fields of tokenizer_config.json before they are used
            raise ModelError(f"the tokenizer cannot encode a text: {type(error).__name__}: {error}") from error
        self._warned_query_cut = False

    def _special_tokens(self, options: RankingOptions) -> tuple[list[int], list[int]]:
        """The special tokens in front of and behind a text: the tokenizer's own habit, or as `add_bos` says."""
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

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, **TOKENIZE)["input_ids"]

    def _cut_query(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        if not self._warned_query_cut and not _QUERIES_COUNTED.get():
            logger.warning("a query of %d tokens was cut to %d on the right (max_query_length)", len(ids), limit)
            self._warned_query_cut = True
        return ids[:limit]


class QueryLikelihoodEncoder(TextEncoder):
    """Token ids for `TSARankModel`: the document's prompt, then the query's own ids (TSARankLLM, Eq. 1)."""

    def __init__(self, tokenizer: Any, options: QueryLikelihoodOptions, context: int | None = None) -> None:
        super().__init__(tokenizer, options, context)
        self.options = options
        self.head, self.tail = options.document_template.split("{document}")
        fixed = len(self.leading) + len(self._ids(self.head + self.tail))
        if fixed + options.max_query_length >= options.max_length:
            raise ModelError(
                f"the prompt's own {fixed} tokens and max_query_length ({options.max_query_length}) leave no room for "
                f"the document in max_length ({options.max_length})"
            )
        # A tokenizer that puts a space in front of every text by itself (SentencePiece's dummy prefix) would turn one
        # leading space into two.
        own_space = self.tokenizer.convert_ids_to_tokens(self._ids("a"))[0].startswith("▁")
        self._query_start = " " if options.prompt_style == "separate_space" and not own_space else ""

    def prompts(self, documents: Sequence[str]) -> list[Prompt]:
        """One uncut `Prompt` per document text. An empty document is allowed: its prompt has no middle."""
        texts = [self.head + document + self.tail for document in documents]
        spans = [(len(self.head), len(self.head) + len(document)) for document in documents]
        result = []
        for span, (ids, offsets) in zip(spans, self._user_text.encode(texts, [[one] for one in spans]), strict=True):
            prompt = _split_around(ids, offsets, *span)
            result.append(Prompt((*self.leading, *prompt.before), prompt.document, prompt.after))
        return result

    def queries(self, queries: Sequence[str]) -> list[list[int]]:
        """Token ids of each query by itself (styles `separate_space` and `separate`), cut to `max_query_length`."""
        return [self._cut_query(ids, self.options.max_query_length) for ids in self._whole_queries(queries)]

    def _whole_queries(self, queries: Sequence[str]) -> list[list[int]]:
        texts = [self._query_start + query for query in queries]
        return [ids for ids, _ in self._user_text.encode(texts, [[(0, len(text))] for text in texts])]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """(query, document) texts, already cleaned, as ids. Equal documents share one tokenization."""
        if self.options.prompt_style == "joined":
            return self._joined(pairs)
        documents = {document: i for i, document in enumerate(dict.fromkeys(d for _, d in pairs))}
        queries = {query: i for i, query in enumerate(dict.fromkeys(q for q, _ in pairs))}
        prompts, uncut = self.prompts(list(documents)), self._whole_queries(list(queries))
        query_ids = [tuple(self._cut_query(ids, self.options.max_query_length)) for ids in uncut]
        whole = [tuple(prompt.cut(len(prompt))) for prompt in prompts]
        result = []
        for query, document in pairs:
            ids, at = query_ids[queries[query]], documents[document]
            room = self.options.max_length - len(ids)
            fits = len(whole[at]) <= room
            prompt = whole[at] if fits else tuple(prompts[at].cut(room))
            left = len(uncut[queries[query]]) - len(ids)
            result.append(EncodedPair(prompt, ids, prompts[at], len(whole[at]) - len(prompt), left))
        return result

    def _joined(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        texts = [f"{self.head}{document}{self.tail} {query}" for query, document in pairs]
        start = len(self.head)
        spans: list[list[Span]] = [
            [(start, start + len(document)), (len(text) - len(query), len(text))]
            for text, (query, document) in zip(texts, pairs, strict=True)
        ]
        result = []
        for (_, document), (ids, offsets) in zip(pairs, self._user_text.encode(texts, spans), strict=True):
            border = start + len(document) + len(self.tail)
            at = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
            query = self._cut_query(ids[at:], self.options.max_query_length)
            prompt = _split_around(ids[:at], offsets[:at], start, start + len(document))
            prompt = Prompt((*self.leading, *prompt.before), prompt.document, prompt.after)
            cut = tuple(prompt.cut(self.options.max_length - len(query)))
            left = len(ids) - at - len(query)
            result.append(EncodedPair(cut, tuple(query), prompt, len(prompt) - len(cut), left))
        return result


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
            prompt = _split_around(ids, offsets, *document_span)
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
        prompt = _split_around(ids[:border], offsets[:border], *document_span)
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
        parts = _split_around(ids, offsets, *span)
        surplus = len(parts.document) - self.options.max_query_length
        if surplus <= 0:
            return ids, offsets
        self._cut_query(list(parts.document), self.options.max_query_length)
        end = len(parts.before) + len(parts.document)
        return ids[: end - surplus] + ids[end:], offsets[: end - surplus] + offsets[end:]
