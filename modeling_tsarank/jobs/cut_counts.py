"""Warnings of cut texts, kept back by callers that add up `last_stats` of many calls and report one count."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

from .. import ranking_text


_REPORTED: ContextVar[bool] = ContextVar("cuts_reported", default=False)


@contextlib.contextmanager
def cuts_reported() -> Iterator[None]:
    """Within it no call of this thread warns of cut texts."""
    token = _REPORTED.set(True)
    try:
        yield
    finally:
        _REPORTED.reset(token)


def _wanted(record: logging.LogRecord) -> bool:
    return record.msg != ranking_text.CUT_WARNING or not _REPORTED.get()


logging.getLogger(ranking_text.__name__).addFilter(_wanted)
