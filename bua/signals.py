"""Ends a command on Ctrl-C, on SIGTERM, and where the program that reads its output has ended.

Python handles a signal between two steps of its own code. Where one call of a library takes long, such as the backward
pass of a large batch on a CPU, the command ends after this call.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Exit codes as shells give them: 128 and the number of the signal.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
OUTPUT_CLOSED = 128 + signal.SIGPIPE
# As for bad input (bua.errors), such as an output that cannot be written.
OUTPUT_FAILED = 2

_LINES = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that a command ends as it does after Ctrl-C."""


class OutputClosed(KeyboardInterrupt):
    """Raised where the program that reads standard output has ended, such as ``head`` after its last line, so that a
    command ends as it does after Ctrl-C."""

    exit_code = OUTPUT_CLOSED


class OutputFailed(OutputClosed):
    """Raised where standard output cannot be written, such as to a file on a full disk, after a line that says so."""

    exit_code = OUTPUT_FAILED


def ends_on_signals(main: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the main function of a tool into one that returns 130 after Ctrl-C, 143 after SIGTERM, 141 without a word
    on ``OutputClosed``, and 2 on ``OutputFailed``.

    The first signal raises KeyboardInterrupt, so that what is begun is finished or removed. Libraries may turn this
    into another exception: NumPy's C interface turns it into ImportError while it is imported. Therefore every
    exception that follows a signal ends the command in the same way. The second signal ends the process at once, as
    killing it does. Nothing that is written is lost by this.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _handlers() as received:
            try:
                return _flushed(main, *args, **kwargs)
            except BaseException as error:
                if isinstance(error, OutputClosed):
                    return error.exit_code
                if not received and not isinstance(error, KeyboardInterrupt):
                    raise
                code = received[0] if received else INTERRUPTED
                print(_LINES[code], file=sys.stderr)
                return code

    return run


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Delays Ctrl-C to the end of the block. Programs that are started in the block never receive it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _flushed(main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function and writes what it has printed, which Python would otherwise do when the process ends."""
    try:
        code = main(*args, **kwargs)
    except SystemExit:  # such as that of argparse after --help
        print(end="", flush=True)
        raise
    print(end="", flush=True)
    return code


# The exit codes of the signals that this process has received, while a function of ``ends_on_signals`` runs.
_received: list[int] = []
_installed: dict[signal.Signals, Any] = {}


@contextmanager
def _handlers() -> Iterator[list[int]]:
    """Handles the two signals for the duration of the block, and from then on if one has come. Yields the exit codes of
    those that have."""
    # Only the main thread can do this. The first of several functions that call each other does it for all.
    if _installed or threading.current_thread() is not threading.main_thread():
        yield _received
        return
    hook = sys.unraisablehook

    def unraisable(raised: Any) -> None:
        # The interruption came where Python cannot raise it, such as in a finalizer, and would be lost.
        if isinstance(raised.exc_value, KeyboardInterrupt) and _received:
            _end_at_once()
        # After a signal, also finalizers fail, such as that of a ZipFile whose constructor was interrupted.
        if not _received:
            hook(raised)

    _received.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        _installed[number] = signal.signal(number, _handle)
    sys.unraisablehook = unraisable
    try:
        yield _received
    finally:
        # After a signal, the handlers stay until the process ends, since a second one may come while it does.
        if not _received:
            _restore()
            sys.unraisablehook = hook


def _handle(number: int, frame: FrameType | None) -> None:
    if _received:
        _end_at_once()
    _received.append(128 + number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end_at_once() -> None:
    os.write(2, f"{_LINES[_received[0]]}\n".encode())
    os._exit(_received[0])


def _restore() -> None:
    """Gives the signals the handlers that they had before. Forked processes, which others end with SIGTERM, need them,
    too."""
    while _installed:
        signal.signal(*_installed.popitem())


os.register_at_fork(after_in_child=_restore)
