import shlex
import subprocess
import sys
import textwrap

import pytest
from tqdm import tqdm

from bua.terminal import printable, printable_output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("été 猫 🙂.jpg", "été 猫 🙂.jpg"),
        ("\x1b[2J.jpg", r"\x1b[2J.jpg"),
        ("\x9b2J\x7f\0", r"\x9b2J\x7f\x00"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("caf\udce9 \ud800", r"caf\xe9 \ud800"),
        (7, "7"),
    ],
)
def test_text_is_printable(text, expected):
    assert printable(text) == expected


def test_what_is_printed_cannot_act_on_the_terminal(capsys):
    with printable_output(), printable_output():
        print("a\x1b]0;title\x07\tb\n\x1b[32mgreen\x1b[0m \x1b[8;30mhidden caf\udce9")
        sys.stdout.writelines(["\x1b[A up\n"])
        print("\x1bc", file=sys.stderr)
    printed = capsys.readouterr()
    assert printed.out == "a\\x1b]0;title\\x07\tb\ngreen hidden caf\\xe9\n\\x1b[A up\n"
    assert printed.err == "\\x1bc\n"
    print("\x1bc")
    assert capsys.readouterr().out == "\x1bc\n"


def test_progress_bars_are_drawn_as_before(capsys):
    def draw():
        with tqdm(total=2, position=1, desc="inner", bar_format="{desc} {n}") as bar:
            bar.update()
        return capsys.readouterr().err

    expected = draw()
    assert "\x1b[A" in expected
    with printable_output():
        assert draw() == expected


def test_a_process_that_was_started_without_standard_files(tmp_path):
    body = """
    import os, sys
    from tqdm import tqdm
    from bua.errors import command

    @command
    def main():
        with open("written", "w") as file:
            os.write(2, b"a library's message")
            print("a message", file=sys.stderr)
            for _ in tqdm(range(2)):
                print("a result")
            file.write("content")

    sys.exit(main())
    """
    script = textwrap.dedent(body)
    ended = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} <&- >&- 2>&-"], cwd=tmp_path, timeout=300
    )
    assert ended.returncode == 0
    assert (tmp_path / "written").read_text() == "content"
