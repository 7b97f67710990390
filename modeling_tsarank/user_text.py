"""User text is plain text: if it spells an added token of the tokenizer (`<|im_end|>`, `<think>`), the characters are
encoded and not the token.

Only such spans are encoded differently, by a private copy of the tokenizer without those tokens; all other ids are
the tokenizer's own, as are the tokens in a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any


# Arguments for tokenizing a batch of whole texts; length warnings would be wrong, since truncation comes later.
TOKENIZE: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
TOKENIZE |= {"return_token_type_ids": False, "verbose": False}
# White space, also as SentencePiece writes it: added tokens for runs of it, as in GPT-NeoX, are not control tokens.
_SPACE = " \t\r\n\v\f▁"
Span = tuple[int, int]


class UserText:
    """Encodes texts in which some spans are the user's."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items()}
        self.added = {number: content for number, content in added.items() if content.strip(_SPACE)}
        longest_first = sorted(set(self.added.values()), key=len, reverse=True)
        # For an empty set: a pattern that matches nothing.
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._unknown = tokenizer.unk_token_id
        self._copies: dict[bool, Any] = {}

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[list[int], list[Span]]]:
        """Ids and character offsets of each text, of which `spans` (start, end) are the user's. No special tokens are
        added."""
        if not texts:
            return []
        batch = self.tokenizer(list(texts), return_offsets_mapping=True, **TOKENIZE)
        rows = zip(texts, batch["input_ids"], batch["offset_mapping"], spans, strict=True)
        return [
            (ids, offsets) if self.added.keys().isdisjoint(ids) else self._as_text(text, ids, offsets, own)
            for text, ids, offsets, own in rows
        ]

    def _as_text(
        self, text: str, ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]
    ) -> tuple[list[int], list[Span]]:
        new_ids: list[int] = []
        new_offsets: list[Span] = []
        for number, (start, end) in zip(ids, offsets, strict=True):
            if number in self.added and self._is_users(number, text, start, end, spans):
                # If the tokenizer dropped leading white space, or added some before the whole text.
                before = new_offsets[-1][1] if new_offsets else 0
                apart = start == 0 or (before < start and text[start - 1].isspace())
                found = self._copy(apart).encode(text[start:end], add_special_tokens=False)
                new_ids += found.ids
                new_offsets += [(start + first, start + last) for first, last in found.offsets]
            else:
                new_ids.append(number)
                new_offsets.append((start, end))
        return new_ids, new_offsets

    def _is_users(self, number: int, text: str, start: int, end: int, spans: Sequence[Span]) -> bool:
        written = text[start:end]
        if number == self._unknown and written.strip(_SPACE) != self.added[number]:
            return False  # a character that is not in the vocabulary
        # A token may include the white space around it, beyond the span.
        start += len(written) - len(written.lstrip())
        end -= len(written) - len(written.rstrip())
        return any(start < last and end > first for first, last in spans)

    def _copy(self, spaced: bool) -> Any:
        """The tokenizer without added tokens; not `spaced`: without the space that it may add before every text."""
        if spaced not in self._copies:
            state = json.loads(self.tokenizer.backend_tokenizer.to_str())
            state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            _forget(state["model"], set(self.added.values()))
            if not spaced:
                state |= {name: _unspaced(state[name]) for name in ("normalizer", "pre_tokenizer")}
            self._copies[spaced] = type(self.tokenizer.backend_tokenizer).from_str(json.dumps(state))
        return self._copies[spaced]


def _forget(model: dict[str, Any], pieces: set[str]) -> None:
    """Removes pieces from a tokenizer's model, so that it cannot form them from characters either."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: an id is an index, so each piece stays, under a name that no text has
        model["vocab"] = [[f"\uffff{piece}" if piece in pieces else piece, score] for piece, score in vocabulary]
        return
    pieces = pieces - {model.get("unk_token")}
    model["vocab"] = {piece: number for piece, number in vocabulary.items() if piece not in pieces}
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if pieces.isdisjoint((*pair, "".join(pair)))]


def _unspaced(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer without a prepended space."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        return {**part, name: [kept for kept in map(_unspaced, part[name]) if kept is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else part
