import os
import socket
from pathlib import Path

import pytest

from bua.regular_files import open_regular, open_regular_or_stream, read_regular


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        assert read_regular(tmp_path / name) == b"content"
        with open_regular_or_stream(str(tmp_path / name)) as file:
            assert file.read() == b"content"


def special_file(folder, kind):
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "it is a named pipe"),
        ("socket", "it is a socket"),
        ("link to a device", "it is a device"),
        ("link to itself", "Too many levels"),
        ("folder", "Is a directory"),
        ("missing", "No such file"),
        ("x" * 300, "File name too long"),
        ("a\0b", "is not a file name"),
        ("\ud800", "is not a file name"),
    ],
)
@pytest.mark.parametrize("opener", [open_regular, open_regular_or_stream])
def test_what_is_not_a_regular_file_is_an_os_error_at_once(tmp_path, monkeypatch, kind, message, opener):
    monkeypatch.chdir(tmp_path)  # the address of a socket has a limit
    path = special_file(Path(), kind)
    with pytest.raises(OSError, match=message) as raised:
        opener(path)
    assert message in raised.value.strerror


def test_a_process_substitution_of_the_shell_is_read_as_a_stream():
    end, other = os.pipe()
    os.write(other, b"a.jpg\n")
    os.close(other)
    with open_regular_or_stream(f"/dev/fd/{end}") as file:
        assert file.read() == b"a.jpg\n"
    with pytest.raises(OSError, match="it is a named pipe"):
        open_regular(f"/dev/fd/{end}")
    os.close(end)
