"""Suppressing records of a logger in a block: those the caller reports itself, or that do not concern the user."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from modeling_tsarank import ranking_text


@contextlib.contextmanager
def kept_back(logger: str, unwanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Drops this thread's unwanted records of a logger within the block."""
    thread = threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or not unwanted(record)

    logging.getLogger(logger).addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(wanted)


@contextlib.contextmanager
def cuts_reported() -> Iterator[None]:
    """No warnings of this thread about truncated texts: the caller sums `last_stats` and reports one count."""
    with kept_back(ranking_text.__name__, lambda record: record.msg == ranking_text.CUT_WARNING):
        yield


def unwarned() -> contextlib.AbstractContextManager[None]:
    """No warnings about empty or truncated texts: they are not the user's."""
    return kept_back(ranking_text.__name__, lambda record: True)
