"""Having many lists ordered by a teacher at once, with nothing lost and nothing silently kept."""

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
"""After so many lists in a row without an answer a server is taken to be gone, and the run stops."""
REFUSED_AT_START = 8
"""If the teacher takes none of the first lists, it will take no other either."""


class Teacher(Protocol):
    """Anything that puts lists in order."""

    name: str

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The order of each list, whose documents are in the first stage's order."""


class EndpointTeacher:
    """Orders lists by asking a language model behind an address.

    Args:
        client: Asks it.
        how: How lists are asked about.
        concurrency: Lists asked about at the same time, 1 or more.
    """

    def __init__(self, client: ChatEndpoint, how: ListwiseOptions | None = None, concurrency: int = 1) -> None:
        self.name = client.name
        self._client, self._ranker = client, ListwiseRanker(client, how)
        self._concurrency = concurrency
        self._ended = threading.Event()

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """What became of each list, in the given order.

        Raises:
            TSARankError: nothing can be asked at all; see `ChatModel.complete`.
        """
        waiting: deque[Future[Ordering]] = deque()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for texts in lists:
                waiting.append(pool.submit(self._order, texts))
                # Only a few are handed over, so that an interrupt leaves no queue behind.
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
    """The orderings of all lists, in the order of `tasks`.

    An error that no list can escape (a wrong key, a server that is gone) ends the run at once; whatever was answered
    is in the teacher's cache, and the same call goes on from there.

    Args:
        teacher: Who orders.
        tasks: The lists.
        documents: Document id to document.

    Raises:
        ResourceError: the server is gone, or takes no list at all.
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
                    f"the teacher {teacher.name} left {in_a_row} lists in a row unanswered ({ordering.reason}); what "
                    "was answered is kept, run again when it is there"
                )
            if REFUSED_AT_START <= counts["refused"] == sum(counts.values()):
                raise ResourceError(
                    f"the teacher {teacher.name} takes no list at all ({ordering.reason}); give it less to read "
                    "(--list-size; window, passage_words) or other settings"
                )
            results.append(ordering)
            bar.update(1)
            bar.set_postfix(counts, refresh=False)
    return results


def summarize(tasks: Sequence[ListTask], orderings: Sequence[Ordering], short: int = 0) -> dict[str, Any]:
    """Counts and rates of a run; the outcomes add up to the number of lists.

    Returns:
        `queries` (lists and those without enough documents), `lists`, `too_few_documents`, `outcomes`, `by_source`
        (outcomes for each query type and first stage), `rates` and `answers` (how the teacher's answers were read).
        `failure` is the share of lists without a usable answer among those answered at all, `repair` the share of
        repaired ones among those ordered.
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
