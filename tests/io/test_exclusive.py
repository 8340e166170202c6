import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from bua.errors import InputError
from bua.io.files import check_not_taken, exclusive

SECONDS = 300  # far more than a busy machine needs


def wait_for(path):
    end = time.monotonic() + SECONDS
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)


def hold(path, ready, end):
    with exclusive(path):
        multiprocessing.get_context("fork").Process(target=wait_for, args=(end,), daemon=True).start()
        ready.set()
        wait_for(end)


@pytest.fixture
def holder(tmp_path, tmp_path_factory):
    """A process that holds the lock on ``tmp_path / "out"`` and has a worker. Both end after the test."""
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), tmp_path_factory.mktemp("holder") / "end"
    process = context.Process(target=hold, args=(tmp_path / "out", ready, end))
    process.start()
    assert ready.wait(SECONDS)
    yield process
    end.touch()
    process.join()


def test_another_process_is_named_and_keeps_the_lock(tmp_path, holder):
    for _ in range(2):
        expected = f"out: process {holder.pid} on {socket.gethostname()} is writing to it"
        with pytest.raises(InputError, match=expected), exclusive(tmp_path / "out"):
            pass
    with exclusive(tmp_path / "another"):
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    """This holds even though its worker is still running."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / "out.lock").exists()
    with exclusive(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_the_block(tmp_path):
    path = tmp_path / "out"
    with exclusive(path):
        assert (tmp_path / "out.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with exclusive(path):
        (tmp_path / "out.lock").unlink()
        (tmp_path / "out.lock").write_text("of a process that came after the file was removed")
    assert (tmp_path / "out.lock").exists()


def count_up(path, times):
    for _ in range(times):
        while True:
            try:
                with exclusive(path):
                    path.write_text(str(int(path.read_text()) + 1))
                break
            except InputError:
                time.sleep(0.001)


def test_two_processes_are_never_in_the_block(tmp_path):
    """This holds even though each process creates and deletes the file of the lock."""
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(path, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "400"


def test_the_file_of_the_lock_can_be_named(tmp_path):
    lock, refused = tmp_path / "training.lock", f"^{tmp_path}: process {os.getpid()} on .* is writing to it"
    with exclusive(tmp_path, lock):
        with pytest.raises(InputError, match=refused), exclusive(tmp_path, lock):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_can_be_written_to(tmp_path, monkeypatch, capsys, number):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path / 'out.lock'}: this file system has no locks; ")
    assert warning.count("\n") == 1


@pytest.mark.parametrize("content", [b"weights", b"notes on the process 5 on that machine", b"\xff\xfe"])
def test_a_file_of_the_user_that_has_the_name_of_a_lock_is_kept(tmp_path, content):
    (tmp_path / "out.lock").write_bytes(content)
    with pytest.raises(InputError, match=r"out.lock: is not a lock of bua"), exclusive(tmp_path / "out"):
        pass
    assert (tmp_path / "out.lock").read_bytes() == content


def test_a_lock_is_no_link_and_no_special_file(tmp_path):
    (tmp_path / "notes").write_text("")
    (tmp_path / "link.lock").symlink_to("notes")
    os.mkfifo(tmp_path / "pipe.lock")
    for name in ("link", "pipe"):
        with pytest.raises(InputError, match=f"{name}.lock: is not a lock of bua"), exclusive(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.lock", "notes", "pipe.lock"]
    assert (tmp_path / "notes").read_text() == ""


def test_a_lock_of_another_program_is_named_in_one_line(tmp_path):
    (tmp_path / "out.lock").write_bytes(b"\xff\n" * 1000)
    with open(tmp_path / "out.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="out: another process is writing to it"), exclusive(tmp_path / "out"):
            pass


def test_a_lock_that_was_taken_over_is_noticed(tmp_path):
    lock = tmp_path / "run" / "training.lock"
    lock.parent.mkdir()
    check_not_taken(lock.parent, lock)
    with exclusive(lock.parent, lock):
        check_not_taken(lock.parent, lock)
        lock.parent.rename(tmp_path / "moved")
        lock.parent.mkdir()
        check_not_taken(lock.parent, lock)
        lock.write_text("process 1 on another")
        with pytest.raises(InputError, match="run: process 1 on another is writing to it"):
            check_not_taken(lock.parent, lock)
    assert lock.exists()


def test_a_folder_without_a_name_can_be_locked(tmp_path, monkeypatch):
    (tmp_path / "run" / "sub").mkdir(parents=True)
    for folder in (tmp_path / "run", tmp_path / "run" / "sub"):
        monkeypatch.chdir(folder)
        with exclusive(Path("." if folder.name == "run" else "..")):
            assert (tmp_path / "run.lock").exists()
    with pytest.raises(InputError, match=r"^/: cannot be an output"), exclusive(Path("/")):
        pass


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), exclusive(tmp_path / "file" / "out"):
        pass
