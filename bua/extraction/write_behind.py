"""Records outcomes in a thread of its own, so that the next ones are computed meanwhile."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Number of outcomes that may wait to be written while the network runs.
MAX_UNWRITTEN = 64


def record_behind(record: Callable[[Item], Result], outcomes: Iterable[Item]) -> Iterator[Result]:
    """Calls ``record`` with each outcome, in one thread. Yields what it returns for each outcome that is recorded."""
    with ThreadPoolExecutor(1, "write") as thread:
        waiting: deque[Future[Result]] = deque()
        try:
            for outcome in outcomes:
                waiting.append(thread.submit(record, outcome))
                while waiting and (waiting[0].done() or len(waiting) > MAX_UNWRITTEN):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except Exception:
            thread.shutdown(cancel_futures=True)
            raise
        # After Ctrl-C, the outcomes that wait are still written.
