"""The command line of the tools that train, run and score the tasks' models."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from fvcore.common.config import CfgNode

from bua.config import check_device
from bua.engine.launch import launch
from bua.engine.losses import NonFiniteLoss
from bua.errors import InputError, command, make_folder
from bua.io.files import whole_file
from bua.tasks.region_batches import RegionReader

# Exit code of a training that stopped because a loss was infinite or NaN.
TRAINING_FAILED = 1


def training_tool(
    description: str | None,
    load_cfg: Callable[[str, list[str]], CfgNode],
    train: Callable[[CfgNode, bool], dict[str, float]],
) -> Callable[..., int]:
    """Returns the main function of a tool that trains: it takes the arguments and returns the exit code.

    Args:
        description: The tool's description.
        load_cfg: Loads a configuration from a YAML file and ``KEY VALUE`` pairs.
        train: Trains from a configuration; the second argument says whether to resume.
    """

    @command
    def main(argv: list[str] | None = None) -> int:
        parser = tool_parser(description)
        parser.add_argument("--config-file", required=True, help="YAML file in configs/")
        parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR")
        parser.add_argument(
            "--num-gpus", type=int, default=1, help="number of processes, one for each GPU (or on the CPU)"
        )
        parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
        args = parser.parse_intermixed_args(argv)
        cfg = load_cfg(args.config_file, args.overrides)
        try:
            launch(train, (cfg, args.resume), num_processes=args.num_gpus)
        except NonFiniteLoss as error:
            print(f"error: {error}", file=sys.stderr)
            return TRAINING_FAILED
        return 0

    return main


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help shows the description as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_inference_options(parser: argparse.ArgumentParser, *, images: str, unit: str, batch_size: int) -> None:
    """Adds the options of a tool that runs a model on files of features, by default on a GPU if there is one.

    Args:
        images: Which images the features must have, for the help.
        unit: What the items of a batch are, for the help.
        batch_size: The default of --batch-size.
    """
    parser.add_argument("--features", nargs="+", required=True, help=f"features of {images}, in any format")
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"{unit} that go through the model at a time (%(default)s)"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu, cuda, cuda:1, ...; default here: %(default)s")


def open_features(args: argparse.Namespace) -> RegionReader:
    """Opens the features that the options of ``add_inference_options`` name.

    Raises:
        InputError: A file cannot be opened, the device is not on this machine, or the batch size is below 1.
    """
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; it must be 1 or more")
    check_device(args.device, "--device")
    return RegionReader.open(args.features, pin_memory=torch.device(args.device).type == "cuda")


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Writes scores to a JSON file; the folder is created if it does not exist."""
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
