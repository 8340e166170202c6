"""The program ``bua`` and its commands."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from script_loading import ROOT

import bua
from bua.commands import command_names, main
from bua.commands.arguments import output_file

LIST_HEAVY_MODULES = """
import contextlib, io, sys
from bua.commands import command_names, run_command
for name in command_names():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        run_command(name, ["--help"])
print(*({"torch", "numpy", "cv2"} & set(sys.modules)))
"""


def test_every_module_is_a_command_with_a_line_of_help(capsys):
    files = {path.stem.replace("_", "-") for path in (ROOT / "bua" / "commands").glob("*.py")}
    assert files - {"--init--", "arguments"} == set(command_names())
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in command_names())


@pytest.mark.parametrize("name", command_names())
def test_command_has_a_description_and_a_program_in_the_checkout(name):
    module = importlib.import_module(f"bua.commands.{name.replace('-', '_')}")
    assert module.__doc__
    assert f"bua {name} " in module.__doc__ or f"bua {name}\n" in module.__doc__
    programs = [ROOT / folder / f"{name.replace('-', '_')}.py" for folder in ("tools", "datasets")]
    assert any(program.is_file() for program in programs)


def test_help_does_not_import_what_takes_long():
    process = subprocess.run([sys.executable, "-c", LIST_HEAVY_MODULES], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == ""


def test_python_m_bua_runs_the_program():
    process = subprocess.run([sys.executable, "-m", "bua", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.strip() == bua.__version__


@pytest.mark.parametrize("arguments", [["--help"], ["train-net", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_ends_a_command_quietly(arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bua", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


def test_unknown_command_is_refused_with_the_closest_name(capsys):
    assert main(["train-nett"]) == 2
    error = capsys.readouterr().err
    assert "train-nett: is not a command" in error
    assert "did you mean train-net?" in error


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    assert main(["train-net", "--config-file", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.yaml: this config file does not exist")


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare-vqa", "--root", "file", "--output", "out"],
        ["prepare-flickr30k", "--root", "file", "--output", "out"],
        ["prepare-visual-genome", "--root", "file"],
        ["extract", "--detector", "shapes", "--images", "images", "--output", "out.tsv", "--vocabulary", "file"],
    ],
)
def test_a_file_in_place_of_a_folder_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "1.png")
    assert main(arguments) == 2
    assert sum(line.startswith("error: ") and "file" in line for line in capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize("folder", ["", ".", "folder"])
@pytest.mark.parametrize(
    "command",
    ["predict-vqa", "predict-caption", "eval-vqa", "eval-caption", "eval-grounding", "count-caption-ngrams"],
)
def test_a_folder_as_an_output_file_is_refused_before_the_work(tmp_path, monkeypatch, capsys, command, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as ended:
        main([command, "--output", folder])
    assert ended.value.code == 2
    assert f"argument --output: {folder!r} is a folder; name a file to write" in capsys.readouterr().err


def test_an_output_file_of_any_name_is_parsed():
    for name in ("9" * 5000, "a\0b", "caf\udce9"):
        assert output_file(name) == Path(name)
