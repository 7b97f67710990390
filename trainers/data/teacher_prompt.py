"""What a teacher is asked: RankGPT's listwise prompt, whose answer is a permutation such as `[2] > [1] > [3]`.

Reference: Sun et al., Is ChatGPT Good at Search? Investigating Large Language Models as Re-Ranking Agents, EMNLP 2023.
The protocol is theirs (numbered passages, one message each, an answer in `[] > []` form); the wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modeling_tsarank.ranking_errors import InputError


Message = dict[str, str]
"""One message of a conversation: `{"role", "content"}`."""

PROMPT_VERSION = "rankgpt-listwise-1"
"""Name of the wording below; it changes whenever the wording does, and is recorded with every row."""

DEFAULT_PASSAGE_WORDS = 300

_SYSTEM = "You are an assistant that puts passages in order of their relevance to a search query."
_LABEL = re.compile(r"\[(\s*\d+\s*)\]")


def passage_text(document: str, max_words: int = DEFAULT_PASSAGE_WORDS) -> str:
    """A passage as the teacher reads it: one line, at most `max_words` words.

    Labels such as [3] inside a passage (references, as in encyclopedias) become (3), so that the teacher cannot take
    them for the labels of passages.
    """
    words = document.split()
    return _LABEL.sub(r"(\1)", " ".join(words[:max_words]))


def listwise_messages(
    query: str, documents: Sequence[str], max_words: int = DEFAULT_PASSAGE_WORDS, attempt: int = 0
) -> list[Message]:
    """The conversation that asks for the order of `documents`.

    Args:
        query: The query.
        documents: n texts, at least two, in the first stage's order.
        max_words: Words of a passage that are shown; the rest is cut off (TWOLAR: 300).
        attempt: 0 for the first question. Later ones add a reminder of the form, as the answer before was unusable
            and a teacher at temperature 0 would give it again.

    Returns:
        `2 n + 4` messages, roles alternating after the first.

    Raises:
        InputError: fewer than two documents, or `max_words` below 1.
    """
    count = len(documents)
    if count < 2:
        raise InputError(f"a teacher orders at least two passages, got {count}")
    if max_words < 1:
        raise InputError(f"a passage needs at least one word, got a limit of {max_words}")
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


def _question(query: str, count: int, attempt: int) -> str:
    question = (
        f"Query: {query}\n"
        f"Rank the {count} passages above by how relevant they are to the query, the most relevant first. "
        f"Name every passage by its number, in the form [] > [], for example [2] > [1]. "
        f"Answer with the ranking alone, without a word of explanation."
    )
    if attempt:
        question += (
            f"\nAn earlier answer could not be read. Write nothing but the {count} numbers, each once, "
            f"in square brackets with > between them."
        )
    return question
