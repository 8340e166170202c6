"""A few cases of every target of the fuzzers, from fixed seeds. `make fuzz` runs new ones for as long as one likes."""

import cases
import pytest
from cases import Finding, Target, make_case, run_case, undamaged
from fuzz import main
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import Files
from targets import TARGETS

from bua.errors import InputError

EXAMPLES = 10
READ = {"correct", "read", "continued", "converted"}


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.kind != "commands"])
def test_undamaged_files_are_read(name):
    for sample in undamaged(TARGETS[name]):
        assert run_case(TARGETS[name], sample, sample) in READ


@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**63 - 1))
def test_damaged_files_are_refused_or_read(name, seed):
    run_case(TARGETS[name], *make_case(TARGETS[name], seed))


# Targets that end otherwise. Their files hold the Python that they run.


def _target(code: str) -> Target:
    return Target("json", lambda: [{"file": code.encode()}], lambda random, files: files, _run)


def _run(sample: Files) -> str:
    exec(sample["file"], {"InputError": InputError})
    return "read"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("open('../escaped', 'w').close()", "outside of its folder: .*escaped"),
        ("import os; os.mkdir('executed')", "executed code"),
        ("b'x' * (1 << 28)", "MemoryError"),
        ("b'x' * (1 << 25)", "MiB of memory"),
        ("raise InputError('')", "not one printable line"),
    ],
)
def test_what_is_a_finding(monkeypatch, code, reason):
    monkeypatch.setattr(cases, "MEMORY_BOUND", 16 << 20)
    monkeypatch.setattr(cases, "MEMORY_LIMIT", 64 << 20)
    target = _target(code)
    with pytest.raises(Finding, match=reason):
        run_case(target, *make_case(target, 0))


def test_bad_input_is_refused():
    target = _target("raise InputError('file: is damaged; get it again')")
    assert run_case(target, *make_case(target, 0)) == "refused"


def test_a_crash_is_kept_and_can_be_replayed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TARGETS, "crashing", _target("import os; os.kill(os.getpid(), 9)"))
    assert main(["--minutes", "0", "--only", "crashing", "--output", str(tmp_path)]) == 1
    (kept,) = tmp_path.iterdir()
    assert "SIGKILL" in capsys.readouterr().err
    assert (kept / "case" / "file").read_text() == "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setitem(TARGETS, "crashing", _target("pass"))
    assert main(["--replay", str(kept)]) == 0
    assert capsys.readouterr().out.strip() == "read"
