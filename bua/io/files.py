"""Files that are there whole or not at all, and files that one process at a time writes."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bua.errors import InputError

# Of the locks that this process holds.
_handles: set[int] = set()


@contextmanager
def whole_file(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when the block ends, and vanishes where it raises.

    Args:
        durable: it is on the disk before it takes that place, for what a machine that dies must not cost.
        shared: several processes may write it at once. Otherwise what a killed process left of it is written over.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """No other process is in such a block for the same path, on any machine where the file system's locks reach.

    What is locked is the file ``<path>.lock``, which goes when the block ends. A process that is killed holds no lock.

    Raises:
        InputError: names the process that is in the block, or why there can be no lock.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        handle = _lock(lock)
    except BlockingIOError:
        raise InputError(f"{path}: {_holder(lock)} is writing to it; wait until it is done, or stop it") from None
    except OSError as error:
        raise InputError(f"{lock}: cannot be written: {error.strerror}; choose another output") from error
    _handles.add(handle)
    try:
        yield
    finally:
        if _is_at(handle, lock):
            lock.unlink()
        _handles.discard(handle)
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Returns when the names of the files in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held the lock before may have removed the file after it was opened here; others lock a new one then.
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(lock: Path) -> str:
    try:
        return lock.read_text() or "another process"
    except OSError:
        return "another process"


def _leave_locks_to_parent() -> None:
    """A lock lasts while any process has its handle: workers that outlive a killed process would keep it."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)
