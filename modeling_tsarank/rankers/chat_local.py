"""A causal language model on this machine as a chat model: any folder or Hub id, through its chat template."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from ..models.embedded_models import embedded_version
from ..models.fingerprints import hub_commit, model_fingerprint
from ..models.resolver import resolve_language_model
from ..models.user_texts import AnyUserText
from ..ranking_errors import ModelError
from ..ranking_options import whole_number
from .chat import AnswerCache, ChatModel, Completion, Message
from .endpoint import RequestRefusedError, Usage
from .listwise_answers import begun_reasoning


logger = logging.getLogger(__name__)


class LocalChat(ChatModel):
    """Answers with a causal language model, greedily (temperature 0).

    Args:
        name_or_path: Hub id or folder, or smollm2-135m-instruct, which comes with this package.
        cache: Where answers are cached.
        usage: Counters of requests.
        max_new_tokens: Maximum tokens of an answer.
        device: Torch device; the best available by default.
        dtype: Number format; see `load_ranker`.
        revision: Branch, tag or commit of a Hub model.
        trust_remote_code: Whether to run the model's own code.

    Raises:
        ModelError: no such causal language model.
        InputError: the device or number format is unavailable.
    """

    def __init__(
        self,
        name_or_path: str,
        cache: AnswerCache | None = None,
        usage: Usage | None = None,
        max_new_tokens: int = 256,
        device: Any = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from ..models.loading import resolve_device, resolve_dtype

        source = resolve_language_model(name_or_path)
        super().__init__(source.label, usage, cache)
        self._max_new_tokens = whole_number(max_new_tokens, "the longest answer in tokens")
        self._device = resolve_device(device)
        self._dtype = resolve_dtype(dtype, self._device)
        self._source = source.location()
        name = source.name
        commit = hub_commit(name, revision) if revision else None
        self._identity = {name: embedded_version(name)} if source.packaged else model_fingerprint(name, commit)
        self._hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self._lock = threading.Lock()
        self._model: Any = None
        self._tokenizer: Any = None

    def describe(self) -> dict[str, Any]:
        """See `ChatModel.describe`."""
        dtype = str(self._dtype).removeprefix("torch.")
        return {"kind": "local", "model": self.name, "max_new_tokens": self._max_new_tokens, "dtype": dtype}

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """See `ChatModel.request`."""
        return {
            "local": self._identity,
            "dtype": str(self._dtype),
            "messages": list(messages),
            "max_new_tokens": self._max_new_tokens,
        }

    def answer(self, messages: Sequence[Message]) -> Completion:
        """See `ChatModel.answer`. Raises if a conversation exceeds the model's context."""
        self.usage.add(requests=1)
        with self._lock:  # one model: threads take turns
            completion = self._generate(messages)
        self.usage.add_answer(completion.prompt_tokens, completion.completion_tokens)
        return completion

    def _load(self) -> None:
        from ..models.checkpoints import causal_class, load_backbone

        try:
            model, self._tokenizer = load_backbone(self._source, causal_class, dtype=self._dtype, **self._hub)
        except ModelError as error:
            raise ModelError(f"cannot load {self.name} as a causal language model: {error}") from error
        self._model = model.to(self._device).eval()

    def _generate(self, messages: Sequence[Message]) -> Completion:
        import torch

        if self._model is None:
            self._load()
        prompt, ids = encoded_conversation(self._tokenizer, messages)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + self._max_new_tokens > limit:
            raise RequestRefusedError(
                f"the conversation has {len(ids)} tokens, with an answer of {self._max_new_tokens} more than the "
                f"{limit} of {self.name}; use windows (window=10), fewer words per passage (passage_words=100) or "
                f"another model"
            )
        end = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else end
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor([ids], device=self._device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._device),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                pad_token_id=pad if pad is not None else 0,
            )
        written = output[0, len(ids) :].tolist()
        cut = len(written) == self._max_new_tokens and written[-1] != end
        # Prepend the tag that ends the prompt; otherwise truncated reasoning would look like an answer.
        text = begun_reasoning(prompt) + self._tokenizer.decode(written, skip_special_tokens=True)
        return Completion(text, len(ids), len(written), "length" if cut else "stop")


def encoded_conversation(tokenizer: Any, messages: Sequence[Message], answer: str = "") -> tuple[str, list[int]]:
    """`conversation_text` and its token ids, without control tokens from the messages' own text.

    Args:
        tokenizer: The model's.
        messages: The conversation.
        answer: Start of the model's answer; a space separates it from a prompt that ends without white space.
    """
    user_text = AnyUserText(tokenizer)
    contents = "".join(message["content"] for message in messages)
    # Control tokens spelled in messages are inserted after the template is filled, to tell them from the template's.
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in contents)
    spelled: list[str] = []

    def hide(found: re.Match[str]) -> str:
        spelled.append(found[0])
        return f"{mark}{len(spelled) - 1}{mark}"

    hidden: list[Message] = [
        {"role": message["role"], "content": user_text.pattern.sub(hide, message["content"])} for message in messages
    ]
    text, spans = "", []
    filled = conversation_text(tokenizer, hidden)
    filled += f" {answer}" if answer and not filled[-1:].isspace() else answer
    for place, part in enumerate(re.split(f"{mark}(\\d+){mark}", filled)):
        own = spelled[int(part)] if place % 2 else part
        if place % 2:
            spans.append((len(text), len(text) + len(own)))
        text += own
    if not spans:
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]
    return text, user_text.encode([text], [spans])[0][0]


def conversation_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The conversation in the model's own chat template; labelled lines for a plain model without one.

    For a template without system messages (such as Gemma's), it is prepended to the first user message.
    """
    if getattr(tokenizer, "chat_template", None):
        from jinja2.exceptions import TemplateError

        for version in (list(messages), _without_system(messages)):
            try:
                return tokenizer.apply_chat_template(version, tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                logger.info("chat template: %s", error)
        raise ModelError("the model's chat template accepts neither a system message nor a conversation without one")
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([tokenizer.bos_token or "", *lines, "Assistant:"]).lstrip("\n")


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    first = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
