"""Arguments that several commands have."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bua.errors import InputError
from bua.options import ENGINES, READERS

if TYPE_CHECKING:
    from bua.pipelines import Pipeline

# A word that begins with one of these is a key of the configuration.
NODES = (
    *("CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FLOAT32_PRECISION", "INPUT", "MODEL", "OUTPUT_DIR", "SEED"),
    *("SOLVER", "TEST", "VERSION"),
)


def add_config_file(parser: argparse._ActionsContainer, what: str, *, default: str | None = None) -> None:
    """Adds --config-file.

    Args:
        what: What the file describes, for the help.
        default: The file that is used if none is given; None if one must be given.
    """
    shown = "; default: %(default)s" if default else ""
    parser.add_argument("--config-file", required=default is None, default=default, help=f"{what}{shown}")


def add_detector(parser: argparse.ArgumentParser, default: str = "MODEL.WEIGHTS of the configuration") -> None:
    """Adds --detector, the checkpoint of the detector. --weights is its former name in some commands.

    Args:
        default: What is used if none is given, for the help.
    """
    parser.add_argument(
        *("--detector", "--weights"),
        dest="detector",
        help="checkpoint of the detector: a file, the name of a released one, or an address (--weights is the "
        f"option's former name); default: {default}",
    )


def add_engine(parser: argparse._ActionsContainer) -> None:
    """Adds --engine, of a command that applies a detector."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="engine of the detector; default: torch if it has this detector, else detectron2, which must be installed",
    )


def add_overrides(parser: argparse.ArgumentParser, before: str = "") -> None:
    """Adds the configuration keys and values at the end of a command.

    Args:
        before: Words that are added to the help.
    """
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help=f"keys of the configuration and their values{before}"
    )


def output_file(text: str) -> Path:
    """The type of an option that names a file to write. A folder is refused before the work begins."""
    # Unlike Path.is_dir, os.path.isdir never raises, for example for a name that is too long.
    if os.path.isdir(text or "."):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file to write")
    return Path(text)


def add_reader(parser: argparse._ActionsContainer) -> None:
    """Adds --for, of a command that writes features."""
    parser.add_argument(
        "--for",
        dest="reader",
        choices=READERS,
        help="write the flavour of the format that this reader's code expects (docs/formats.md)",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that trains a task's model."""
    add_config_file(parser, "the configuration of the model and its training")
    add_resume(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="number of processes, one for each GPU, or on the CPU (%(default)s)"
    )
    add_overrides(parser)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Adds --resume, and --resume-from, which sets ``resume`` to the path of a checkpoint."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR")
    group.add_argument(
        "--resume-from",
        dest="resume",
        metavar="FILE",
        help="continue from this checkpoint instead, such as the one before the newest if that is damaged",
    )


def add_inference_options(parser: argparse.ArgumentParser, *, images: str, unit: str, batch_size: int) -> None:
    """Adds the options of a command that runs a model on files of features.

    Args:
        images: Which images the features must have, for the help.
        unit: What the items of a batch are, for the help.
        batch_size: The default of --batch-size.
    """
    parser.add_argument("--features", nargs="+", required=True, help=f"features of {images}, in any format")
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"{unit} that go through the model at a time (%(default)s)"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")


def add_image_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the options of a command that applies a detector, and a task's model on its features, to image files.

    Args:
        several: Whether the command takes more than one image.
    """
    files = "image files" if several else "image file"
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help=f"{files}, as without an option")
    _add_detector_options(parser)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE or KEY VALUE",
        help=f"{files}; keys of the configuration and their values for the detector",
    )


def image_files(args: argparse.Namespace, *, several: bool = False) -> list[str]:
    """Returns the image files that the options of ``add_image_options`` name, and moves the keys of the configuration
    and their values from ``args.words`` to ``args.overrides``.

    Raises:
        InputError: No image file is named, or more than one where ``several`` is false, or one that does not exist.
            Loading the models, which takes seconds, comes afterwards.
    """
    files, args.overrides = split_words(args.words)
    files = [*args.image, *files]
    if not files:
        raise InputError("FILE: none given; name an image file")
    check_files(files)
    if len(files) > 1 and not several:
        raise InputError(f"FILE: {len(files)} are given, of which the second is {files[1]}; name one image file")
    return files


def check_files(files: Sequence[str]) -> None:
    """Raises InputError if one of the image files of a command does not exist, or is a folder."""
    for file in files:
        if not os.path.exists(file):
            raise InputError(f"{file}: no such file; name an image file, or a key of the configuration with its value")
        if os.path.isdir(file):
            raise InputError(f"{file}: is a folder; name image files, such as {os.path.join(file, '*.jpg')}")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the image files, and the keys of the configuration with their values, among the words of a command."""
    files, overrides = [], []
    left = iter(words)
    for word in left:
        if word.partition(".")[0] in NODES:
            overrides += [word, *([value] if (value := next(left, None)) is not None else [])]
        else:
            files.append(word)
    return files, overrides


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that applies a detector to images, and tasks' models on its features."""
    _add_detector_options(parser)
    add_overrides(parser, " for the detector")


def load_pipeline(task: str, model: str | None, args: argparse.Namespace) -> "Pipeline":
    """Loads the detector and the task's model that the options of ``add_image_options`` name.

    Args:
        task, model: As for ``bua.pipelines.pipeline``.

    Raises:
        InputError: As for ``bua.pipelines.pipeline``.
    """
    from bua.pipelines import pipeline

    return pipeline(
        task,
        model,
        detector=args.detector,
        config_file=args.config_file,
        overrides=args.overrides,
        device=args.device,
        min_boxes=args.min_boxes,
        max_boxes=args.max_boxes,
        engine=args.engine,
    )


def _add_detector_options(parser: argparse.ArgumentParser) -> None:
    add_detector(parser, "the one that comes with bua, for a model that comes with bua")
    parser.add_argument(
        "--config-file",
        help="the detector's configuration; default: the one that its checkpoint holds, or that of released weights",
    )
    add_engine(parser)
    same = "default: as in the features that the model was trained on, or"
    parser.add_argument("--min-boxes", type=int, help=f"minimum number of regions; {same} 10")
    parser.add_argument("--max-boxes", type=int, help=f"maximum number of regions; {same} 100")
    add_device(parser)
