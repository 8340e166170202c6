import os

import pytest

from bua.io.files import whole_file


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"shared": True}])
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
    with whole_file(tmp_path / "a") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["a"]
