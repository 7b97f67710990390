"""The listwise prompts for chat models; the answer is a permutation such as `[2] > [1] > [3]`.

References: Sun et al., Is ChatGPT Good at Search? Investigating Large Language Models as Re-Ranking Agents, EMNLP 2023
(numbered passages, one message each); Pradeep et al., RankZephyr, 2023 (all passages in one message). The protocols
are theirs, the prompts are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..ranking_errors import InputError
from ..ranking_options import check_choice, whole_number
from .chat import Message


PROMPTS = {"conversation": "rankgpt-listwise-2", "single": "single-message-listwise-1"}
"""The prompts and the name of each version: it changes with the text, and is recorded in every row.

`conversation` is RankGPT's, one message per passage; `single` has all passages in one message, for small models that
would otherwise continue the conversation.
"""

EXAMPLES = {"conversation": (2, 1), "single": (3, 1, 2)}
"""The example answer in each prompt, which weak models copy. For two passages it is always 2, 1."""

DEFAULT_PASSAGE_WORDS = 300

_SYSTEM = "You are an assistant that puts passages in order of their relevance to a search query."
_LABEL = re.compile(r"\[(\s*\d+\s*)\]")


def passage_text(document: str, max_words: int = DEFAULT_PASSAGE_WORDS) -> str:
    """A passage as shown in the prompt: one line, at most `max_words` words.

    Labels such as [3] inside a passage (references, as in encyclopedias) become (3), so that the model does not
    mistake them for passage labels.
    """
    words = document.split()
    return _LABEL.sub(r"(\1)", " ".join(words[:max_words]))


def listwise_messages(
    query: str,
    documents: Sequence[str],
    max_words: int = DEFAULT_PASSAGE_WORDS,
    attempt: int = 0,
    prompt: str = "conversation",
) -> list[Message]:
    """The messages that request the order of `documents`.

    Args:
        query: The query.
        documents: n texts, at least two, in the first stage's order.
        max_words: Maximum words of a passage; the rest is truncated (TWOLAR: 300).
        attempt: 0 for the first request. Later ones add a reminder of the form, because the previous answer was
            unusable and a model at temperature 0 would repeat it.
        prompt: One of `PROMPTS`.

    Returns:
        `2 n + 4` messages, roles alternating after the first; one of the user's for `single`.

    Raises:
        InputError: fewer than two documents, `max_words` below 1, or an unknown prompt.
    """
    count = len(documents)
    if count < 2:
        raise InputError(f"a listwise prompt needs at least two passages, got {count}")
    max_words = whole_number(max_words, "a passage's limit of words")
    check_choice("prompt", prompt, tuple(PROMPTS))
    if prompt == "single":
        return [{"role": "user", "content": _single_message(query, documents, max_words, attempt)}]
    messages = [
        {"role": "system", "content": _SYSTEM},
        {
            "role": "user",
            "content": f"I will give you {count} passages, each with a number in square brackets. "
            f"Put them in order of their relevance to this query: {query}",
        },
        {"role": "assistant", "content": "Please give me the passages."},
    ]
    for number, document in enumerate(documents, start=1):
        messages.append({"role": "user", "content": f"[{number}] {passage_text(document, max_words)}"})
        messages.append({"role": "assistant", "content": f"I have read passage [{number}]."})
    messages.append({"role": "user", "content": _question(query, count, attempt)})
    return messages


def _single_message(query: str, documents: Sequence[str], max_words: int, attempt: int) -> str:
    count = len(documents)
    shown = [f"[{number}] {passage_text(text, max_words)}" for number, text in enumerate(documents, start=1)]
    passages = "\n".join(shown)
    form = " > ".join(f"[{number}]" for number in (EXAMPLES["single"] if count > 2 else (2, 1)))
    return (
        f"I will give you {count} passages, each with a number in brackets. "
        f"Rank them by how well they answer the search query: {query}\n\n{passages}\n\nSearch query: {query}\n\n"
        f"List all {count} numbers, the most relevant first, in the form {form}. "
        f"Write only the ranking, no explanation.{_reminder(count, attempt)}"
    )


def _question(query: str, count: int, attempt: int) -> str:
    return (
        f"Query: {query}\n"
        f"Rank the {count} passages above by how relevant they are to the query, the most relevant first. "
        f"Name every passage by its number, in the form [] > [], for example [2] > [1]. "
        f"Answer with the ranking alone, without a word of explanation.{_reminder(count, attempt)}"
    )


def _reminder(count: int, attempt: int) -> str:
    if not attempt:
        return ""
    return (
        f"\nAn earlier answer could not be used. Write nothing but the {count} numbers, each once, "
        f"in square brackets with > between them."
    )
