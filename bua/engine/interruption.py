"""Ctrl-C as a request that is answered where nothing gets lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2
NOTE = "stopping after this iteration; Ctrl-C again stops at once, without saving"


class Interruption:
    """While entered, the first Ctrl-C only sets ``requested``; a second one raises KeyboardInterrupt.

    Signals reach the main thread alone; in other threads this does nothing.
    """

    def __init__(self):
        self.requested = False
        self._waits = True

    def __enter__(self) -> "Interruption":
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, Ctrl-C raises KeyboardInterrupt at once; so does one that came before and was not yet answered."""
        self._waits = False
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = True

    def _handle(self, signal_number, frame) -> None:
        if self.requested or not self._waits:
            raise KeyboardInterrupt
        self.requested = True
        if os.environ.get("RANK", "0") != "0":
            return
        # print() may be what the signal interrupted, and does not bear being entered again.
        os.write(STDERR, f"\n{NOTE}\n".encode())
