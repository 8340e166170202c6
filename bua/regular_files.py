"""Opens the files that a user names or that lie in a folder of the user's. Only regular files are opened.

Opening a named pipe (FIFO) waits until another process writes to it, which may never happen, and reading a device may
never end. Wherever such a file lies, it is refused like a file without permission: with an OSError, whose message is
reported as that of other files that cannot be read.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

# What a process has open already, such as standard input and process substitutions of a shell, `<(command)`.
STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file, or a link to one, for reading bytes.

    Raises:
        OSError: There is no such file, it cannot be opened, its path is not a file name, or it is not a regular file.
            ``strerror`` says which.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        return open(path, "rb", opener=open_without_waiting)
    except ValueError as error:
        # A path with a null byte, or one that cannot be encoded.
        raise OSError(errno.EINVAL, f"is not a file name: {error}", path) from error


def read_regular(path: str | Path) -> bytes:
    """Returns the content of a regular file; errors as for ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def open_regular_or_stream(path: str | Path) -> BufferedReader:
    """Opens what ``open_regular`` does, or one of ``STREAMS``, which has another end already, so that opening it does
    not wait."""
    return open(path, "rb") if os.fspath(path).startswith(STREAMS) else open_regular(path)


def _check_regular(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", path)


def open_without_waiting(path: str, flags: int) -> int:
    """An ``opener`` for ``open`` that does not wait for the other end of a named pipe. For writing, such a pipe is an
    OSError. Also a file that was checked may have been replaced by one since."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
