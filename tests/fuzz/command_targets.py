"""Fuzzing of command lines: the parsers of all commands, and the commands that end soon where their input is bad."""

import argparse
import importlib
import json
from functools import cache
from pathlib import Path
from random import Random

from cases import Finding, Target
from mutations import Files

from bua.commands import command_names, main, run_command

FILE = "arguments.json"
# What options are given, besides their choices and defaults. The files are those of ``_samples``.
VALUES = (
    "", " ", "-", "--", "-1", "0", "1", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "0x10", "1.5", "\x00", "\ud800",
    "\x1b[2J", "a" * 300, "nowhere", "nowhere/x", "/dev/null", "/proc/self/mem", ".", "..", "/", "~", "*", "{", "}",
    "folder", "empty", "text.txt", "damaged.json", "damaged.npz", "damaged.yaml", "mps", "cuda:99", "meta", "xpu",
    "http://", "http://127.0.0.1:1/x.pth", "file:///etc/passwd", "s3://x/y", "random", "MODEL.WEIGHTS", "SEED", "=",
    "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "INPUT.MIN_SIZE_TEST", "OUTPUT_DIR", "keep", "{:d}", "{0.a}",
)  # fmt: skip
# Commands that are run. The others download, draw, train or serve if their arguments happen to be good.
RUN = (
    "inspect-features", "convert-features", "verify-features", "eval-vqa", "eval-caption", "eval-grounding",
    "prepare-visual-genome", "prepare-vqa", "prepare-captions", "prepare-flickr30k", "count-caption-ngrams",
    "make-oracle-features", "convert-checkpoint", "predict-vqa", "predict-caption", "train-vqa", "train-caption",
    "train-grounding", "answer", "caption", "ground", "extract", "visualize",
)  # fmt: skip
EXIT_CODES = (0, 1, 2)


def _samples() -> list[Files]:
    files = {
        "empty": b"",
        "text.txt": b"words\n",
        "damaged.json": b'{"images": [',
        "damaged.npz": b"PK\x03\x04damaged",
        "damaged.yaml": b"MODEL: [",
        "folder/x": b"",
    }
    return [{**files, FILE: json.dumps([name]).encode()} for name in command_names()]


@cache
def _actions(name: str) -> list[argparse.Action]:
    module = importlib.import_module(f"bua.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    return parser._actions


def _mutate(random: Random, files: Files) -> Files:
    """Gives a command required options and a few others, with values that make little sense."""
    (name,) = json.loads(files[FILE])
    actions = _actions(name)
    chosen = [action for action in actions if action.required and random.random() < 0.9]
    chosen += random.sample(actions, random.randrange(min(4, len(actions) + 1)))
    arguments = [name]
    for action in chosen:
        arguments += random.sample(action.option_strings, 1) if action.option_strings else []
        if action.nargs != 0:
            arguments += [_value(random, action) for _ in range(random.choice((1, 1, 1, 0, 2, 3)))]
    if random.random() < 0.1:
        arguments.insert(random.randrange(len(arguments) + 1), random.choice(VALUES))
    if random.random() < 0.1:
        arguments.append(random.choice(("--help", "-h", "--", "--unknown", "--f")))
    return {**files, FILE: json.dumps(arguments).encode()}


def _value(random: Random, action: argparse.Action) -> str:
    if action.choices and random.random() < 0.7:
        return str(random.choice(list(action.choices)))
    if action.default is not None and random.random() < 0.1:
        return str(action.default)
    return random.choice(VALUES)


def _check_parser(sample: Files) -> str:
    """Parses the command line as ``bua`` does, without running the command."""
    name, *arguments = json.loads(Path(FILE).read_bytes()) or [""]
    if name not in command_names():
        return _ended(main([name, *arguments]))
    module = importlib.import_module(f"bua.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    try:
        parser.parse_intermixed_args(arguments)
    except SystemExit as end:
        return _ended(end.code)
    return "parsed"


def _check_command(sample: Files) -> str:
    name, *arguments = json.loads(Path(FILE).read_bytes()) or [""]
    if name not in RUN or set(arguments) & {"random", "/", "..", "~", "/proc/self/mem"}:
        return "left out"
    try:
        return _ended(run_command(name, arguments))
    except SystemExit as end:
        return _ended(end.code)


def _ended(code: object) -> str:
    if code not in EXIT_CODES:
        raise Finding(f"exit code {code}")
    return "refused" if code else "done"


TARGETS = {
    "parsers": Target("commands", _samples, _mutate, _check_parser),
    "commands": Target(
        "commands", lambda: [case for case in _samples() if json.loads(case[FILE])[0] in RUN], _mutate, _check_command
    ),
}
