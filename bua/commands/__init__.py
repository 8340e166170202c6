"""The program ``bua``: one command for each thing that bua does.

Each command is a module with a docstring, which is its description, and two functions: ``add_arguments(parser)``, which
imports nothing heavy, so that ``--help`` is shown at once, and ``run(args)``, which returns the exit code. The programs
in tools/ and datasets/ of a checkout are the same commands.
"""

import argparse
import difflib
import functools
import importlib
import sys
from collections.abc import Callable

import bua
from bua.errors import INPUT_ERROR, command
from bua.signals import ends_on_signals
from bua.terminal import printable_output

# The commands, in groups, each with the line that ``bua --help`` shows.
GROUPS = {
    "Data": {
        "download": "fetch data sets from their official addresses",
        "make-shapes": "draw the data set Shapes",
        "prepare-visual-genome": "prepare Visual Genome for the detector",
        "prepare-vqa": "prepare VQA v2",
        "prepare-captions": "prepare COCO's captions",
        "prepare-flickr30k": "prepare Flickr30k Entities",
        "count-caption-ngrams": "count n-grams of captions, for CIDEr optimisation",
        "make-oracle-features": "write the features of a perfect detector",
    },
    "Detector": {
        "train-net": "train or evaluate a detector",
        "visualize": "draw annotations and detections",
        "convert-checkpoint": "convert weights between layouts",
    },
    "Features": {
        "extract": "write the region features of images",
        "convert-features": "convert features between formats",
        "inspect-features": "summarise a file of features, and what is wrong with it",
        "verify-features": "compare features with a reference",
    },
    "Tasks": {
        "answer": "answer a question about an image",
        "caption": "caption images",
        "ground": "find the phrases of a sentence in an image",
        "train-vqa": "train a model for question answering",
        "train-caption": "train a captioner",
        "train-grounding": "train a model for phrase grounding",
        "predict-vqa": "answer the questions of a data set",
        "predict-caption": "caption the images of a data set",
        "eval-vqa": "score answers",
        "eval-caption": "score captions",
        "eval-grounding": "score phrase grounding",
    },
    "Everything together": {
        "app": "open a page in a browser that applies the models to images of one's own",
        "demo": "show everything on drawn images, and write a page of the results",
        "pack-weights": "make the models that come with the package from a training of the demo",
    },
}


@printable_output()
@ends_on_signals
def main(argv: list[str] | None = None) -> int:
    """Runs the program ``bua`` and returns its exit code.

    Args:
        argv: The arguments, of which the first is the name of the command; by default those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(bua.__version__)
        return 0
    name, *arguments = argv
    if name not in command_names():
        close = difflib.get_close_matches(name, command_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: {name}: is not a command of bua; {hint}`bua --help` lists the commands", file=sys.stderr)
        return INPUT_ERROR
    return run_command(name, arguments)


def command_names() -> list[str]:
    """Returns the names of all commands."""
    return [name for group in GROUPS.values() for name in group]


@printable_output()
@ends_on_signals
def run_command(name: str, argv: list[str] | None = None, *, program: str | None = None) -> int:
    """Runs one command and returns its exit code: 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        name: One of ``command_names()``.
        argv: The arguments after the name; by default those of this process.
        program: Name of the program in its help; by default ``bua <name>``.
    """
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=program or f"bua {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return command(module.run)(parser.parse_intermixed_args(argv))


def script(name: str) -> Callable[..., int]:
    """Returns the main function of the program of a checkout that runs the command ``name``."""
    return functools.partial(run_command, name, program=sys.argv[0])


def _overview() -> str:
    width = max(map(len, command_names()))
    lines = [f"bua {bua.__version__}: {(bua.__doc__ or '').strip()}", "", "usage: bua COMMAND ...", ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:{width}}  {help}" for name, help in group.items()), ""]
    return "\n".join([*lines, "`bua COMMAND --help` describes a command."])
