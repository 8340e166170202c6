"""Signals that a command receives, each in a process of its own."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import os, signal, sys

from bua.errors import InputError, command

def send(number):
    os.kill(os.getpid(), number)

@command
def main():
{body}

sys.exit(main())
"""


def run(body, **streams):
    script = SCRIPT.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-c", script], text=True, timeout=300, **streams)


@pytest.mark.parametrize(("signal", "code", "line"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_a_command_with_one_line_and_its_exit_code(signal, code, line):
    ended = run(f"""
        try:
            send(signal.{signal})
        finally:
            print("cleaned up")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "cleaned up\n", f"{line}\n")


@pytest.mark.parametrize("error", ["ImportError", "InputError"])
def test_an_exception_that_a_library_makes_of_ctrl_c_is_ctrl_c(error):
    ended = run(f"""
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise {error}("numpy.core.multiarray failed to import") from error
    """)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_the_process_at_once(second):
    ended = run(f"""
        try:
            send(signal.SIGINT)
        finally:
            send(signal.{second})
            print("cleaned up")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_a_second_ctrl_c_after_the_end_of_a_command():
    ended = run("""
        import atexit
        atexit.register(send, signal.SIGINT)
        send(signal.SIGINT)
    """)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


def test_ctrl_c_where_python_cannot_raise_it():
    ended = run("""
        class Finalized:
            def __del__(self):
                send(signal.SIGINT)

        Finalized()
        print("went on")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_finalizers_of_what_ctrl_c_left_unfinished_are_silent():
    ended = run("""
        class Unfinished:
            def __init__(self):
                send(signal.SIGINT)
                self.file = None

            def __del__(self):
                self.file

        Unfinished()
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_forked_processes_end_on_sigterm_as_others_do():
    ended = run("""
        child = os.fork()
        if not child:
            send(signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    """)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("size", [1, 100_000])  # within Python's buffer, and beyond
def test_standard_output_on_a_full_disk(size):
    with open("/dev/full", "w") as full:
        ended = run(f"print('x' * {size})", stdout=full)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: standard output cannot be written: No space left on device; make room, or send it elsewhere\n"
    )


@pytest.mark.parametrize(("body", "code"), [("print('a', file=sys.stderr)", 0), ("raise InputError('a')", 2)])
def test_a_message_on_a_full_disk_is_lost_and_ends_nothing(body, code):
    with open("/dev/full", "w") as full:
        ended = run(f"print('before')\n{body}\nprint('after')", stderr=full)
    assert ended.returncode == code
    assert ended.stdout == ("before\nafter\n" if code == 0 else "before\n")
