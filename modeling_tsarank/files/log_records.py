"""Records of a logger that are kept back within a block: what a caller says itself, or what is not the user's."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from modeling_tsarank import ranking_text


@contextlib.contextmanager
def kept_back(logger: str, unwanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within it this thread's unwanted records of a logger are dropped."""
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
    """Within it no call of this thread warns of cut texts: the caller adds up `last_stats` and reports one count."""
    with kept_back(ranking_text.__name__, lambda record: record.msg == ranking_text.CUT_WARNING):
        yield


def unwarned() -> contextlib.AbstractContextManager[None]:
    """Within it nobody is told that texts are empty or cut: they are not the user's."""
    return kept_back(ranking_text.__name__, lambda record: True)
