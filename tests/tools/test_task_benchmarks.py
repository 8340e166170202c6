"""Tests of the command lines of the tasks' benchmarks."""

import sys

import pytest
import torch
from script_loading import ROOT, load_script


@pytest.mark.parametrize("name", ["vqa", "captioning"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--device", "cuda"],
            "--device is 'cuda', but this machine has 0 GPUs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        (["--device", "cpu", "--steps", "0"], "--steps is 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_one_line(monkeypatch, capsys, name, arguments, message):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    assert load_script(f"benchmarks/{name}.py").main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
