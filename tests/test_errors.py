import pytest

from bua.errors import InputError, command, make_folder


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


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(InputError, match=f"{path}: cannot create this folder"):
            make_folder(path)
