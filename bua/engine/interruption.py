"""Handles Ctrl-C so that training stops after an iteration, when it can be saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2
MESSAGE = "stopping after this iteration; press Ctrl-C again to stop at once, without saving"


class Interruption:
    """A context in which the first Ctrl-C only sets ``requested``, and a second one raises KeyboardInterrupt.

    Python handles signals in the main thread only. In other threads this context does nothing.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = True

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
        """A context in which Ctrl-C raises KeyboardInterrupt at once.

        If Ctrl-C was pressed before and has not been handled yet, KeyboardInterrupt is raised on entering.
        """
        self._deferred = False
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._deferred = True

    def _handle(self, signal_number, frame) -> None:
        if self.requested or not self._deferred:
            raise KeyboardInterrupt
        self.requested = True
        if os.environ.get("RANK", "0") != "0":
            return
        # The signal may have interrupted print(), which must not be called again before it returns.
        os.write(STDERR, f"\n{MESSAGE}\n".encode())
