"""Ranking of many lists by a teacher concurrently, with every failure recorded."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol

from tqdm.auto import tqdm

from modeling_tsarank.eval.types import Document
from modeling_tsarank.rankers.chat import ChatEndpoint
from modeling_tsarank.rankers.listwise import OUTCOMES, ListwiseOptions, ListwiseRanker, Ordering
from modeling_tsarank.ranking_errors import ResourceError
from modeling_tsarank.trainers.data.list_building import ListTask
from modeling_tsarank.trainers.data.teacher_scores import Texts


UNANSWERED_IN_A_ROW = 8
"""After this many consecutive lists without an answer the server is considered down, and the run stops."""
REFUSED_AT_START = 8
"""If the teacher rejects all of the first lists, it will reject all others too."""


class Teacher(Protocol):
    """Anything that ranks lists."""

    name: str

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The ranking of each list, whose documents are in the first stage's order."""


class EndpointTeacher:
    """Ranks lists with a language model behind a URL.

    Args:
        client: Sends the requests.
        how: Options of the listwise prompt.
        concurrency: Number of concurrent lists, 1 or more.
    """

    def __init__(self, client: ChatEndpoint, how: ListwiseOptions | None = None, concurrency: int = 1) -> None:
        self.name = client.name
        self._client, self._ranker = client, ListwiseRanker(client, how)
        self._concurrency = concurrency
        self._ended = threading.Event()

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The outcome of each list, in the given order.

        Raises:
            TSARankError: no request is possible at all; see `ChatModel.complete`.
        """
        waiting: deque[Future[Ordering]] = deque()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for texts in lists:
                waiting.append(pool.submit(self._order, texts))
                # Only a few lists are submitted ahead, so that an interrupt leaves no queue behind.
                if len(waiting) == 2 * self._concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            self._ended.set()
            self._client.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, texts: Texts) -> Ordering:
        if self._ended.is_set():
            return Ordering("unanswered")
        try:
            return self._ranker.order(*texts)
        except BaseException:
            self._ended.set()
            raise


def order_lists(teacher: Teacher, tasks: Sequence[ListTask], documents: Mapping[str, Document]) -> list[Ordering]:
    """The rankings of all lists, in the order of `tasks`.

    An error that affects all lists (a wrong key, a server that is down) ends the run at once; the answers so far are
    in the teacher's cache, and the same call resumes from there.

    Args:
        teacher: The teacher.
        tasks: The lists.
        documents: Document id to document.

    Raises:
        ResourceError: the server is down, or rejects every list.
        TSARankError: what the teacher raised.
    """
    texts = [(task.query.text, [documents[name].full_text for name in task.document_ids]) for task in tasks]
    counts: Counter[str] = Counter()
    results = []
    in_a_row = 0
    with (
        tqdm(total=len(tasks), desc=f"asking {teacher.name}", unit="list", disable=None) as bar,
        closing(teacher.order_many(texts)) as orderings,  # type: ignore[type-var]
    ):
        for ordering in orderings:
            counts[ordering.outcome] += 1
            in_a_row = in_a_row + 1 if ordering.outcome == "unanswered" else 0
            if in_a_row >= UNANSWERED_IN_A_ROW:
                raise ResourceError(
                    f"the teacher {teacher.name} left {in_a_row} consecutive lists unanswered ({ordering.reason}); "
                    "answers so far are cached, run again when it is available"
                )
            if REFUSED_AT_START <= counts["refused"] == sum(counts.values()):
                raise ResourceError(
                    f"the teacher {teacher.name} rejects every list ({ordering.reason}); send shorter lists "
                    "(--list-size; window, passage_words) or change other settings"
                )
            results.append(ordering)
            bar.update(1)
            bar.set_postfix(counts, refresh=False)
    return results


def summarize(tasks: Sequence[ListTask], orderings: Sequence[Ordering], short: int = 0) -> dict[str, Any]:
    """Counts and rates of a run; the outcomes add up to the number of lists.

    Returns:
        `queries` (lists and those without enough documents), `lists`, `too_few_documents`, `outcomes`, `by_source`
        (outcomes by query type and first stage), `rates` and `answers` (how the teacher's answers were parsed).
        `failure` is the fraction of lists without a usable answer among those with any answer, `repair` the fraction
        of repaired ones among those ranked.
    """
    outcomes = Counter(ordering.outcome for ordering in orderings)
    by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for task, ordering in zip(tasks, orderings, strict=True):
        by_source[f"{task.query.query_type} x {task.first_stage}"][ordering.outcome] += 1
    ordered = outcomes["clean"] + outcomes["repaired"]
    readings = [reading for ordering in orderings if ordering.permutation for reading in ordering.reading]
    return {
        "queries": len(tasks) + short,
        "lists": len(tasks),
        "too_few_documents": short,
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "by_source": {name: {one: by_source[name][one] for one in OUTCOMES} for name in sorted(by_source)},
        "rates": {
            "failure": _share(outcomes["failed"], ordered + outcomes["failed"]),
            "repair": _share(outcomes["repaired"], ordered),
        },
        "answers": {
            "received": sum(len(ordering.answers) for ordering in orderings),
            "used": len(readings),
            "in_the_asked_form": sum(reading.in_form for reading in readings),
            "with_repeated_numbers": sum(reading.repeated > 0 for reading in readings),
            "with_numbers_out_of_range": sum(reading.out_of_range > 0 for reading in readings),
            "with_missing_passages": sum(reading.missing > 0 for reading in readings),
            "keeping_the_given_order": sum(reading.unchanged for reading in readings),
        },
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
