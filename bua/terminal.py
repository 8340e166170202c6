"""Keeps text that bua did not write itself, such as the names of files, from acting on the terminal it is shown on.

A file name may hold any character, also those that make a terminal clear its screen, change its title or overwrite what
it shows. They are shown as escapes: ``\\x1b`` for the character that begins a terminal's commands.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from bua.signals import OutputClosed, OutputFailed

# Control characters, marks that change the direction of writing, and parts of a file name that are not UTF-8.
_ACTING = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_PRINTABLE = re.compile(f"[{_ACTING}\t\n\r]")
# Programs print line ends, and the carriage return of progress bars. Libraries print colours, which are left out: the
# name of a file could hide text with them.
_NOT_IN_OUTPUT = re.compile(f"(\x1b\\[[0-9;]*m)|[{_ACTING}]")
# What tqdm writes to move from one progress bar to another.
_CURSOR_MOVES = re.compile("\n*(\x1b\\[A)*")


def printable(text: object) -> str:
    """Returns text as one line without characters that act on a terminal: these are replaced by their escapes."""
    return _NOT_PRINTABLE.sub(_escape, str(text))


@contextmanager
def printable_output() -> Iterator[None]:
    """For the duration of the block, what is printed to standard output and standard error cannot act on a terminal,
    apart from progress bars. Text that is not UTF-8 is printed, too. Where the program that reads standard output has
    ended, printing raises ``OutputClosed``; where it cannot be written, such as on a full disk, one line on standard
    error says so, and printing raises ``OutputFailed``. A message that standard error refuses is lost."""
    with ExitStack() as stack:
        for stream, redirect, is_output in ((sys.stdout, redirect_stdout, True), (sys.stderr, redirect_stderr, False)):
            # A process may be started without them. Progress bars need a stream nevertheless.
            if stream is None:
                _open_closed_files()
                stream = stack.enter_context(open(os.devnull, "w"))
            if not isinstance(stream, _PrintableStream):
                stack.enter_context(redirect(_PrintableStream(stream, is_output)))
        yield


class _PrintableStream:
    """A text stream that escapes what is written to it, and otherwise behaves as the stream that it writes to.

    Args:
        is_output: Whether it is standard output, whose end raises ``OutputClosed`` or ``OutputFailed``.
    """

    def __init__(self, stream: TextIO, is_output: bool):
        self._stream = stream
        self._is_output = is_output

    def write(self, text: str) -> int:
        shown = text
        if not _CURSOR_MOVES.fullmatch(text):
            shown = _NOT_IN_OUTPUT.sub(lambda match: "" if match[1] else _escape(match), text)
        with self._ends_command():
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with self._ends_command():
            self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    @contextmanager
    def _ends_command(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A message that finds no place must not end days of work, nor change the exit code that it explains.
            if not self._is_output:
                return
            # What is still in the buffer is lost. Python would try to write it once more when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise OutputClosed from None
            reason = f"standard output cannot be written: {error.strerror}"
            print(f"error: {reason}; make room, or send it elsewhere", file=sys.stderr)
            raise OutputFailed from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed_files() -> None:
    """Opens the null device in place of those of the files 0, 1 and 2 that are closed. Otherwise, files that are opened
    later get these numbers, and what libraries write to standard error goes into them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python stands such a character for each byte of a file name that is not UTF-8.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()
