"""User text is encoded as plain text: by all tokenizers, slow ones too, and for encoders, which get whole texts."""

from __future__ import annotations

from collections.abc import Sequence

from ..user_text import TOKENIZE, Span, UserText


class AnyUserText(UserText):
    """Like `UserText`, also for slow tokenizers, which return no offsets."""

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[list[int], list[Span]]]:
        """See `UserText.encode`."""
        if getattr(self.tokenizer, "is_fast", False):
            return super().encode(texts, spans)
        return [(self._slow(text, own), []) for text, own in zip(texts, spans, strict=True)]

    def encode_whole(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Ids of texts that are entirely the user's, with the tokenizer's special tokens; truncated on the right to
        `limit` in total."""
        whole, inside = self.tokenizer("a")["input_ids"], self.tokenizer("a", **TOKENIZE)["input_ids"]
        at = next(at for at in range(len(whole)) if whole[at : at + len(inside)] == inside)
        before, after = whole[:at], whole[at + len(inside) :]
        room = limit - len(before) - len(after)
        encoded = self.encode(texts, [[(0, len(text))] for text in texts])
        return [[*before, *ids[:room], *after] for ids, _ in encoded]

    def _slow(self, text: str, spans: Sequence[Span]) -> list[int]:
        tokenizer = self.tokenizer
        ids = tokenizer(text, **TOKENIZE)["input_ids"]
        if self.added.keys().isdisjoint(ids):
            return ids
        ids, at = [], 0
        for start, end in [*spans, (len(text), len(text))]:
            parts = [text[at:start], *self.pattern.split(text[start:end])]
            for place, part in enumerate(parts):
                if place and not place % 2:  # the pattern's match
                    ids += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(part, split_special_tokens=True))
                elif part:
                    ids += tokenizer(part, **TOKENIZE)["input_ids"]
            at = end
        return ids
