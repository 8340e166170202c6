"""Counts where a program waits for the pretended device, and collects what a GPU would refuse."""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
HARNESS = {str(path) for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")}

# An asynchronous copy from memory that is not pinned goes through a buffer of the driver. It does not wait for the
# device, so it is listed and not counted.
PAGEABLE = "copy from pageable memory"


class Waits:
    """The waits and the errors of all threads.

    Attributes:
        counts: Number of waits by (kind, call site).
        errors: What a GPU would have refused.
    """

    def __init__(self):
        self.counts: Counter[tuple[str, str]] = Counter()
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def add(self, kind: str, number: int = 1) -> None:
        site = call_site()
        with self._lock:
            self.counts[kind, site] += number

    def refuse(self, message: str) -> NoReturn:
        """Raises what CUDA would raise. It is also collected, because the project may catch it."""
        self.errors.append(f"{call_site()}: {message}")
        raise RuntimeError(message)

    @contextlib.contextmanager
    def counted(self) -> Iterator["Counter[tuple[str, str]]"]:
        """Yields a counter that receives, at the end, the waits of the block by (kind, call site)."""
        before, found = self.counts.copy(), Counter()
        yield found
        found.update(self.counts - before)


waits = Waits()


def total(found: "Counter[tuple[str, str]]") -> int:
    """Returns the number of waits that ``Waits.counted`` found."""
    return sum(number for (kind, _), number in found.items() if kind != PAGEABLE)


def table(found: "Counter[tuple[str, str]]") -> str:
    """Returns a line per call site, the most frequent first."""
    return "\n".join(f"{number:6d}  {kind:26} {site}" for (kind, site), number in found.most_common())


def call_site() -> str:
    """Returns the innermost line of the project that runs, as path:line. Autograd's threads run none of them; there, it
    is the line of the main thread that called ``backward``."""
    main = sys._current_frames().get(threading.main_thread().ident)
    for start in (sys._getframe(1), main):
        frame = start
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(ROOT) and name not in HARNESS and "site-packages" not in name:
                return f"{os.path.relpath(name, ROOT)}:{frame.f_lineno}"
            frame = frame.f_back
    return "(outside of the project)"
