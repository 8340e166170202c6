import errno

import pytest

from bua.errors import InputError, command, make_folder, shown


def test_a_command_turns_bad_input_into_one_line_and_exit_code_2(capsys):
    @command
    def main():
        raise InputError("a.json: images: missing; add it")

    assert main() == 2
    assert capsys.readouterr().err == "error: a.json: images: missing; add it\n"


def test_a_command_gives_130_on_ctrl_c_and_otherwise_what_it_returns():
    @command
    def main(result):
        if isinstance(result, BaseException):
            raise result
        return result

    assert main(None) == 0
    assert main(1) == 1
    assert main(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        main(ZeroDivisionError())


def test_names_in_messages_and_in_the_output_cannot_act_on_the_terminal(capsys):
    @command
    def main():
        print("\x1b[2J.jpg caf\udce9")
        raise InputError("\x1b[2J.jpg: is not an image\nerror: \udce9")

    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == "\\x1b[2J.jpg caf\\xe9\n"
    assert printed.err == "error: \\x1b[2J.jpg: is not an image\\nerror: \\xe9\n"


def test_a_path_that_is_too_long_is_one_line(capsys, tmp_path):
    @command
    def main(path):
        path.stat()

    assert main(tmp_path / ("x" * 300)) == 2
    assert capsys.readouterr().err.endswith("...: this path is too long\n")
    with pytest.raises(FileNotFoundError):
        main(tmp_path / "gone")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the output: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/\x1ba"), "/ro/\\x1ba: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(capsys, error, line):
    @command
    def main():
        raise error

    assert main() == 2
    expected = f"error: {line}; fix this and run the same command again, or choose another place\n"
    assert capsys.readouterr().err == expected


def test_a_value_of_any_size_and_depth_is_shown_in_a_short_text():
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    assert len(shown([deep, {"a": "x" * 1000, "b": list(range(1000))}])) < 500
    assert shown(None) == "None"
    assert shown("a") == "'a'"


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(InputError, match=f"{path}: cannot create this folder"):
            make_folder(path)
