import contextlib
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from bua.errors import InputError
from bua.io.files import whole_file, write_together


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"locked": True}])
def test_a_file_is_written_completely_or_not_at_all(tmp_path, options):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        stop_halfway(path, options)
    assert path.read_text() == "old"
    with whole_file(path, **options) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def stop_halfway(path, options):
    with whole_file(path, **options) as file:
        file.write(b"half")
        raise ZeroDivisionError


def test_the_temporary_file_of_a_killed_process_is_overwritten(tmp_path):
    (tmp_path / "a.tmp").write_text("left")
    with whole_file(tmp_path / "a", locked=True) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["a"]


def write_slowly(path, text, begun, end):
    with whole_file(path) as file:
        file.write(text[:1])
        file.flush()
        begun.set()
        end.wait()
        file.write(text[1:])


def test_what_processes_write_at_the_same_time_is_not_mixed(tmp_path):
    context = multiprocessing.get_context("fork")
    begun, end = [context.Event(), context.Event()], context.Event()
    writers = [
        context.Process(target=write_slowly, args=(tmp_path / "a", text, event, end))
        for text, event in zip((b"first", b"the second"), begun)
    ]
    for writer in writers:
        writer.start()
    for event in begun:
        event.wait()
    end.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert (tmp_path / "a").read_bytes() in (b"first", b"the second")
    assert os.listdir(tmp_path) == ["a"]


def test_what_threads_and_processes_of_containers_write_at_the_same_time_is_not_mixed(tmp_path):
    # Both writers have the same process id, as two processes in containers that share a folder may have.
    with whole_file(tmp_path / "a") as first:
        with whole_file(tmp_path / "a") as second:
            second.write(b"the second")
            first.write(b"first")
        assert (tmp_path / "a").read_bytes() == b"the second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["", ".", "folder"])
def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"^{name or '.'}: is a folder; name a file"), whole_file(Path(name)):
        pass
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_meanwhile_is_one_line(tmp_path, locked, replaced):
    stack = contextlib.ExitStack()
    path = tmp_path / "folder" / "a"
    with pytest.raises(InputError, match="a: its folder does not exist, or was removed"), whole_file(path):
        pass
    path.parent.mkdir()
    file = stack.enter_context(whole_file(path, locked=locked))
    shutil.rmtree(path.parent)
    if replaced:
        path.parent.touch()
    file.write(b"new")
    with pytest.raises(InputError, match="a: its folder does not exist, or was removed"):
        stack.close()


def test_a_pipe_in_place_of_the_temporary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tmp")
    with pytest.raises(OSError, match="No such device"), whole_file(tmp_path / "a", locked=True):
        pass


def test_files_that_belong_together_are_written_all_or_none(tmp_path, monkeypatch):
    (tmp_path / "old").write_text("old")
    contents = {tmp_path / name: name.encode() for name in ("first", "old", "last")}
    replace = os.replace

    def interrupted(source, target):
        if target.name == "first":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together(contents)
    assert os.listdir(tmp_path) == ["old"]
    with pytest.raises(TypeError):
        write_together({tmp_path / "first": b"", tmp_path / "last": None})
    assert os.listdir(tmp_path) == ["old"]
    monkeypatch.undo()
    write_together(contents)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {path.name: path.name for path in contents}
