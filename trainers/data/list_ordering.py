"""Having many lists ordered by a teacher at once, with nothing lost and nothing silently kept."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, runtime_checkable

from tqdm.auto import tqdm

from modeling_tsarank.eval.types import Document
from modeling_tsarank.rankers.listwise import OUTCOMES, Ordering
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.trainers.data.list_building import ListTask


logger = logging.getLogger(__name__)

ORDERED = ("clean", "repaired")
UNANSWERED_IN_A_ROW = 8
"""After so many lists in a row without an answer a server is taken to be gone, and the run stops."""
REFUSED_AT_START = 8
"""If the teacher takes none of the first lists, it will take no other either."""


class Teacher(Protocol):
    """Anything that puts a list in order."""

    name: str

    def order(self, query: str, documents: Sequence[str]) -> Ordering:
        """The order of n documents, given in the first stage's order."""


@runtime_checkable
class ManyTeacher(Protocol):
    """A teacher that does many lists better together."""

    name: str

    def order_many(self, lists: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Ordering]:
        """The order of each (query, documents), in the given order."""


def order_lists(
    teacher: Teacher,
    tasks: Sequence[ListTask],
    documents: Mapping[str, Document],
    concurrency: int = 1,
    stop: Callable[[], None] | None = None,
    show_progress: bool | None = None,
) -> list[Ordering]:
    """The orderings of all lists, in the order of `tasks`.

    An error that no list can escape (a wrong key, a server that is gone) ends the run at once; whatever was answered
    is in the teacher's cache, and the same call goes on from there.

    Args:
        teacher: Who orders.
        tasks: The lists.
        documents: Document id to document.
        concurrency: Lists asked about at the same time; a teacher that scores does many in one call instead.
        stop: Called when the run ends early, to end a teacher's waiting.
        show_progress: Progress bar on stderr; None shows it on a terminal only.

    Raises:
        InputError: `concurrency` below 1.
        ResourceError: the server is gone, or takes no list at all.
        TSARankError: what the teacher raised.
    """
    concurrency = whole_number(concurrency, "the number of lists asked about at a time")
    watch = _Watch(teacher.name)
    results: list[Ordering | None] = [None] * len(tasks)
    ended = threading.Event()

    def work(place: int) -> Ordering | None:
        if ended.is_set():
            return None
        task = tasks[place]
        return teacher.order(task.query.text, [documents[name].full_text for name in task.document_ids])

    hidden = None if show_progress is None else not show_progress
    if isinstance(teacher, ManyTeacher):
        texts = [(task.query.text, [documents[name].full_text for name in task.document_ids]) for task in tasks]
        scored = teacher.order_many(texts)
        return list(tqdm(scored, total=len(tasks), desc=f"asking {teacher.name}", unit="list", disable=hidden))
    with (
        tqdm(total=len(tasks), desc=f"asking {teacher.name}", unit="list", disable=hidden) as bar,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        waiting: dict[Future[Ordering | None], int] = {}
        upcoming = iter(range(len(tasks)))
        try:
            while True:
                # Only as many as are asked at a time are handed over, so that an interrupt leaves no queue behind.
                for place in upcoming:
                    waiting[pool.submit(work, place)] = place
                    if len(waiting) >= concurrency:
                        break
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    place = waiting.pop(future)
                    ordering = results[place] = future.result()
                    if ordering is not None:
                        watch.see(ordering)
                    bar.update(1)
                    bar.set_postfix(watch.shown(), refresh=False)
        except BaseException:
            ended.set()
            if stop is not None:
                stop()
            raise
    return [ordering for ordering in results if ordering is not None]


class _Watch:
    """Notices when going on is pointless."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: Counter[str] = Counter()
        self._in_a_row = 0

    def see(self, ordering: Ordering) -> None:
        self._counts[ordering.outcome] += 1
        self._in_a_row = self._in_a_row + 1 if ordering.outcome == "unanswered" else 0
        if self._in_a_row >= UNANSWERED_IN_A_ROW:
            raise ResourceError(
                f"the teacher {self._name} left {self._in_a_row} lists in a row unanswered ({ordering.reason}); what "
                f"was answered is kept, run again when it is there"
            )
        if self._counts["refused"] >= REFUSED_AT_START and self._counts["refused"] == sum(self._counts.values()):
            raise ResourceError(
                f"the teacher {self._name} takes no list at all ({ordering.reason}); give it less to read "
                f"(--list-size, --window, --passage-words) or other settings"
            )

    def shown(self) -> dict[str, int]:
        return {outcome: self._counts[outcome] for outcome in OUTCOMES if self._counts[outcome]}


def summarize(tasks: Sequence[ListTask], orderings: Sequence[Ordering], short: int = 0) -> dict[str, Any]:
    """Counts and rates of a run; the outcomes add up to the number of lists.

    Returns:
        `queries` (lists and those without enough documents), `lists`, `too_few_documents`, `outcomes`, `by_source`
        (outcomes for each query type and first stage), `rates` and `answers` (how the teacher's answers were read).
        `failure` is the share of lists without a usable answer among those answered at all, `repair` the share of
        repaired ones among those ordered.

    Raises:
        InputError: not one ordering for each list, or an outcome that is none.
    """
    if len(tasks) != len(orderings):
        raise InputError(f"{len(tasks)} lists and {len(orderings)} orderings do not correspond")
    unknown = {ordering.outcome for ordering in orderings} - set(OUTCOMES)
    if unknown:
        raise InputError(f"unknown outcome {', '.join(unknown)}; expected one of {', '.join(OUTCOMES)}")
    outcomes = Counter(ordering.outcome for ordering in orderings)
    by_source: dict[str, Counter[str]] = {}
    for task, ordering in zip(tasks, orderings, strict=True):
        by_source.setdefault(f"{task.query.query_type} x {task.first_stage}", Counter())[ordering.outcome] += 1
    ordered = outcomes["clean"] + outcomes["repaired"]
    readings = [reading for ordering in orderings if ordering.permutation for reading in ordering.reading]
    return {
        "queries": len(tasks) + short,
        "lists": len(tasks),
        "too_few_documents": short,
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "by_source": {
            source: {outcome: counts[outcome] for outcome in OUTCOMES} for source, counts in sorted(by_source.items())
        },
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
