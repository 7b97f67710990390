"""Choosing one of a few labels with a model: by the logits of their tokens, or by the letter a chat model writes."""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..cache.memory_store import MemoryStore
from ..engine.prefix_reader import PrefixReader
from ..engine.read_outs import AnswerLogits
from ..engine.tasks import Task
from ..models.user_texts import AnyUserText
from ..ranking_errors import ModelError
from ..ranking_scoring import check_batch_tokens, decoder_start, pad_right, plan_batches
from .chat import ChatModel
from .chat_local import encoded_conversation
from .endpoint import RequestRefusedError
from .listwise_answers import without_reasoning


LETTERS = string.ascii_uppercase
# Size limit of the cached states of shared prompt beginnings.
STATE_BYTES = 1 << 30
_LETTER = re.compile(r"""\W*(?:(?:the\s+)?(?:answer|passage)(?:\s+is)?\W*)*([A-Z])\b\W*""", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question with one of the first letters of the alphabet as its answer.

    Attributes:
        text: The message to the model.
        count: Number of letters to choose from.
        begin: The start of the answer, up to the letter, such as `Passage ` or `[`.
        shared: The start of `text` that later questions share: a local model caches the states of that part.
    """

    text: str
    count: int
    begin: str = "Passage "
    shared: str = ""


class Labels(Protocol):
    """A model that scores labels."""

    name: str

    def scores(self, questions: Sequence[Question], tally: Counter[str]) -> list[np.ndarray | None]:
        """One score a label for each question, `(count,)`, higher is better; None for an unusable answer.

        `calls`, `tokens` and `unusable` are added to `tally`.

        Raises:
            ModelError: the model has too few labels, or a question exceeds its context.
            TSARankError: the model is unavailable.
        """

    def check(self, count: int, begin: str) -> None:
        """Raises `ModelError` if there are fewer than `count` labels."""


class LabelModel:
    """A local language model that scores labels by the logits of their tokens after the question.

    Args:
        backbone: A decoder-only or encoder-decoder model of transformers, with its language modelling head.
        tokenizer: Its tokenizer; its chat template is used if it has one.
        name: The name for tables.
        batch_tokens: Padded tokens in a batch; None for the device's default.
    """

    def __init__(self, backbone: Any, tokenizer: Any, name: str = "model", batch_tokens: int | None = None) -> None:
        self.backbone, self.tokenizer, self.name = backbone.eval(), tokenizer, name
        self._batch_tokens = batch_tokens
        self._is_seq2seq = bool(backbone.config.is_encoder_decoder)
        self._label_ids: dict[str, list[int]] = {}
        self._states = MemoryStore(STATE_BYTES)

    def check(self, count: int, begin: str) -> None:
        """See `Labels.check`."""
        found = len(self.label_ids(begin))
        if count > found:
            raise ModelError(
                f"{self.name} has {found} labels that are single tokens after {begin!r}, too few for {count} "
                "documents in one prompt; use fewer documents in a prompt"
            )

    def label_ids(self, begin: str) -> list[int]:
        """The tokens of the letters A, B, … after `begin`, up to the first that is not a single token."""
        if begin not in self._label_ids:
            rows = [self._encode("?", begin + letter)[-1] for letter in LETTERS]
            single = itertools.takewhile(lambda row: row[:-1] == rows[0][:-1], rows)
            ids = [row[-1] for row in single]
            self._label_ids[begin] = ids if len(ids) == len(set(ids)) else []
        return self._label_ids[begin]

    def scores(self, questions: Sequence[Question], tally: Counter[str]) -> list[np.ndarray | None]:
        """See `Labels.scores`; the scores are logits, float32."""
        found: list[np.ndarray | None] = [None] * len(questions)
        for begin in dict.fromkeys(question.begin for question in questions):
            places = [place for place, question in enumerate(questions) if question.begin == begin]
            self.check(max(questions[place].count for place in places), begin)
            prompts = [self._prompt(questions[place]) for place in places]
            shared = [self._shared(questions[place], ids) for place, (_, ids) in zip(places, prompts, strict=True)]
            read = self._read(prompts, shared, self.label_ids(begin), tally)
            for place, values in zip(places, read, strict=True):
                found[place] = values[: questions[place].count].float().cpu().numpy()
        tally["calls"] += len(questions)
        return found

    def _encode(self, text: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of an encoder's input, empty without one, and of the decoder's input, including `answer`."""
        if not self._is_seq2seq:
            return [], encoded_conversation(self.tokenizer, [{"role": "user", "content": text}], answer)[1]
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids = AnyUserText(self.tokenizer).encode([text], [[(0, len(text))]])[0][0]
        start = [decoder_start(self.backbone)]
        return [*ids, *end], start + self.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def _prompt(self, question: Question) -> tuple[list[int], list[int]]:
        encoder, decoder = self._encode(question.text, question.begin + LETTERS[0])
        limit = getattr(self.backbone.config, "max_position_embeddings", None)
        longest = max(len(encoder), len(decoder) - 1)
        if limit is not None and longest > limit:
            raise ModelError(
                f"a prompt with {question.count} documents has {longest} tokens, more than the {limit} of "
                f"{self.name}; use fewer documents in a prompt, or fewer words of each (passage_words)"
            )
        return encoder, decoder[:-1]

    def _shared(self, question: Question, ids: list[int]) -> tuple[int, ...]:
        """The first tokens of a decoder's prompt, common to all questions with the same `shared`."""
        if self._is_seq2seq or not question.shared:
            return ()
        alone = self._encode(question.shared, question.begin)[1]
        pairs = zip(ids, alone, strict=False)
        return tuple(token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _read(
        self,
        prompts: Sequence[tuple[list[int], list[int]]],
        shared: Sequence[tuple[int, ...]],
        labels: list[int],
        tally: Counter[str],
    ) -> list[torch.Tensor]:
        """The logits of the labels after each prompt, `(labels,)` each; shared prefixes are encoded once.

        Args:
            prompts: Token ids of the encoder's and of the decoder's input.
            shared: The prefix of the decoder's input whose states are cached; empty for none.
            labels: Token ids.
            tally: Receives the number of encoded tokens.
        """
        device, pad = self.backbone.device, self.tokenizer.pad_token_id or 0
        budget = check_batch_tokens(self._batch_tokens, device)
        with torch.inference_mode():
            if not self._is_seq2seq:
                reader = self._reader(labels, pad, max(len(ids) for _, ids in prompts) if any(shared) else 0)
                tasks = [
                    Task(tuple(ids), (len(ids) - 1,), cached=prefix, length=len(ids))
                    for (_, ids), prefix in zip(prompts, shared, strict=True)
                ]
                values = reader.read(tasks, budget, show_progress=False)
                tally["tokens"] += reader.tokens
                return [value[0] for value in values]
            tally["tokens"] += sum(len(encoder) + len(decoder) for encoder, decoder in prompts)
            found: dict[int, torch.Tensor] = {}
            for batch in plan_batches([len(encoder) + len(decoder) for encoder, decoder in prompts], budget):
                inputs, mask = pad_right([prompts[place][0] for place in batch], pad, device)
                ids, _ = pad_right([prompts[place][1] for place in batch], pad, device)
                logits = self.backbone(input_ids=inputs, attention_mask=mask, decoder_input_ids=ids).logits
                for row, place in enumerate(batch):
                    found[place] = logits[row, len(prompts[place][1]) - 1, labels]
            return [found[place] for place in range(len(prompts))]

    def _reader(self, labels: list[int], pad: int, longest: int) -> PrefixReader:
        """With cached states if prompts of up to `longest` tokens share a prefix and the model supports it."""
        read_out = AnswerLogits(labels)
        if longest:
            try:
                reader = PrefixReader(self.backbone, read_out, self._states, pad_id=pad)
                reader.check_store(longest)
                return reader
            except ModelError:
                pass
        return PrefixReader(self.backbone, read_out, pad_id=pad)


class ChatLabels:
    """A chat model that answers with a letter: that label gets 1, the others 0.

    Args:
        model: The chat model.
    """

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self.name = model.name

    def check(self, count: int, begin: str) -> None:
        """See `Labels.check`."""
        if count > len(LETTERS):
            raise ModelError(f"{count} documents in one prompt are more than the {len(LETTERS)} letters")

    def scores(self, questions: Sequence[Question], tally: Counter[str]) -> list[np.ndarray | None]:
        """See `Labels.scores`; 1 for the label in the model's answer, 0 for the others."""
        return [self._score(question, tally) for question in questions]

    def _score(self, question: Question, tally: Counter[str]) -> np.ndarray | None:
        self.check(question.count, question.begin)
        tally["calls"] += 1
        try:
            answer = self._model.complete([{"role": "user", "content": question.text}])
        except RequestRefusedError:
            tally["unusable"] += 1
            return None
        tally["tokens"] += (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        named = _LETTER.fullmatch(without_reasoning(answer.text).strip())
        place = LETTERS.index(named[1].upper()) if named else question.count
        if place >= question.count:
            tally["unusable"] += 1
            return None
        return np.eye(question.count, dtype=np.float32)[place]
