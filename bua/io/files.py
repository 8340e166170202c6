"""Writes files that are complete whenever they exist, and locks files that only one process may write at a time."""

import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bua.errors import InputError
from bua.regular_files import open_regular, open_without_waiting

# File descriptors of the locks that this process holds.
_held_locks: set[int] = set()

# What a file that is a lock begins with, followed by the number of the process and the name of its machine.
_MARK = "process "
_LONGEST_MARK = 300

# What systems answer where a file system has no locks, as some parallel ones are mounted.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Locked(InputError):
    """Raised when another process writes a file."""


@contextmanager
def whole_file(path: Path, *, durable: bool = False, locked: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which replaces ``path`` when the block ends.

    If the block raises, the temporary file is deleted and ``path`` stays as it was.

    Args:
        durable: Whether to sync the file to the disk before it replaces ``path``, so that it is not lost or incomplete
            if the machine crashes.
        locked: Whether a lock (``exclusive``) keeps other processes from writing ``path``. Then the temporary file that
            a killed process left behind is overwritten. Otherwise each call has a temporary file of its own, so that
            what several processes and threads write at the same time is not mixed.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist, also if this was removed during the block.
    """
    if not path.name or os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name a file to write")
    # A process id would not be unique: the processes of containers that share a folder often have the same one.
    temporary = path.with_name(f"{path.name}.tmp" if locked else f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with needing_folder(path):
            opened = open(temporary, "wb", opener=open_without_waiting)  # noqa: SIM115  closed below
        with opened as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        with needing_folder(path):
            os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
        raise


@contextmanager
def needing_folder(path: Path) -> Iterator[None]:
    """A context in which a missing folder of ``path`` becomes an InputError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: its folder does not exist, or was removed meanwhile; create it, and run the same command again"
        ) from error


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together. If one cannot be written, or the program is interrupted, none of those that
    are new is there afterwards."""
    new = [path for path in contents if not path.exists()]
    try:
        # The files get their names when the block ends, after all of them are written.
        with ExitStack() as stack:
            for path, content in contents.items():
                stack.enter_context(whole_file(path)).write(content)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def move_file(source: Path, target: Path) -> None:
    """Gives a file another name, also on another file system. ``target`` is complete whenever it exists."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(source, "rb") as content, whole_file(target, durable=True) as copy:
            shutil.copyfileobj(content, copy)
        source.unlink()


@contextmanager
def exclusive(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Holds a lock on ``path`` for the duration of the block, which only one process can hold at a time.

    This includes processes on other machines, as far as the file system supports locks across machines. Where it does
    not support locks at all, a warning on standard error says so, and nothing is locked. A process that is killed loses
    its locks.

    Args:
        lock: The file that is locked, and deleted when the block ends; by default ``<path>.lock``.

    Raises:
        Locked: Another process holds the lock (the message names it).
        InputError: The lock cannot be created, or there is a file of its name that is no lock.
    """
    lock = lock or lock_beside(path)
    try:
        handle = _lock(lock)
    except BlockingIOError:
        raise _locked(path, lock) from None
    except OSError as error:
        if lock.is_symlink():
            raise _not_a_lock(lock) from error
        raise InputError(f"{lock}: cannot be written: {error.strerror}; choose another output") from error
    _held_locks.add(handle)
    try:
        yield
    finally:
        if _is_at(handle, lock):
            lock.unlink()
        _held_locks.discard(handle)
        os.close(handle)


def check_not_taken(path: Path, lock: Path) -> None:
    """Checks that no other process holds a lock. This is so where the folder of the lock was moved away, and another
    process took its place.

    Raises:
        Locked: Another process holds it.
    """
    if _read_mark(lock) not in (_own_mark(), ""):
        raise _locked(path, lock)


def lock_beside(path: Path) -> Path:
    """Returns ``<path>.lock``.

    Raises:
        InputError: The path has no name, such as the root of a file system.
    """
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        raise InputError(f"{path}: cannot be an output; choose a file or a folder in it")
    return path.with_name(f"{path.name}.lock")


def sync_folder(folder: Path) -> None:
    """Syncs a folder: when it returns, the names of the files in the folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_in_place(path: Path, handle: int) -> None:
    """Checks that ``path`` is still the file or folder that was opened as ``handle``. What is written into one that
    was deleted or replaced since then is lost.

    Raises:
        InputError: It is not.
    """
    if not _is_at(handle, path):
        raise InputError(
            f"{path}: was deleted, moved or replaced while it was written; put it back if you can, and run the same "
            "command again"
        )


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _not_a_lock(path)
            _flock(handle, path)
            # The previous holder may have deleted the file after it was opened here; others would lock a new file.
            if _is_at(handle, path):
                # A file of the user that happens to have this name would be overwritten, and deleted at the end.
                if os.pread(handle, len(_MARK), 0) not in (b"", _MARK.encode()):
                    raise _not_a_lock(path)
                os.ftruncate(handle, 0)
                os.pwrite(handle, _own_mark().encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {path}: this file system has no locks; start nothing else that writes to the same output",
            file=sys.stderr,
        )


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _own_mark() -> str:
    return f"{_MARK}{os.getpid()} on {socket.gethostname()}"


def _read_mark(lock: Path) -> str:
    """Returns what the holder of a lock wrote into it; empty if that cannot be read, or another program wrote it."""
    try:
        with open_regular(lock) as file:
            text = file.read(_LONGEST_MARK).decode(errors="replace")
    except OSError:
        return ""
    return text if text.startswith(_MARK) else ""


def _locked(path: Path, lock: Path) -> Locked:
    holder = _read_mark(lock) or "another process"
    return Locked(f"{path}: {holder} is writing to it; wait until it is done, or stop it")


def _not_a_lock(path: Path) -> InputError:
    return InputError(f"{path}: is not a lock of bua, which needs this name; move it, or name another output")


def _leave_locks_to_parent() -> None:
    """Closes the locks that a forked process inherited.

    A lock is held as long as any process has its file descriptor open. Without this, a worker that outlives its killed
    parent would keep the lock.
    """
    for handle in _held_locks:
        os.close(handle)
    _held_locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def file_version(path: Path) -> tuple[int, ...]:
    """Returns numbers that tell a file from others and from itself after a change, as a key of what was read from it;
    an empty tuple if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
