"""What the commands that train, run and score the tasks' models have in common."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from fvcore.common.config import CfgNode

from bua.config import check_device
from bua.engine.launch import check_processes, launch
from bua.engine.losses import NonFiniteLoss
from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.options import TRAINING_FAILED
from bua.precision import set_float32_precision
from bua.tasks.region_batches import RegionReader


def run_training(
    train: Callable[[CfgNode, bool | str], dict[str, float]], cfg: CfgNode, args: argparse.Namespace
) -> int:
    """Trains in as many processes as ``args`` say, and returns the exit code.

    Args:
        train: Trains from a configuration; the second argument says whether to resume, or names the checkpoint.
        args: The options ``resume`` and ``num_gpus``.
    """
    check_processes(cfg.MODEL.DEVICE, args.num_gpus)
    try:
        launch(train, (cfg, args.resume), num_processes=args.num_gpus)
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return TRAINING_FAILED
    return 0


def open_features(args: argparse.Namespace) -> RegionReader:
    """Opens the features that the options ``features``, ``device`` and ``batch_size`` name. If no device is given, the
    option becomes a GPU, or the CPU if there is none. This process then computes in float32.

    Raises:
        InputError: A file cannot be opened, the device is not on this machine, or the batch size is below 1.
    """
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; it must be 1 or more")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(args.device, "--device")
    # Torch would let cuDNN compute recurrent layers in TF32.
    set_float32_precision("highest")
    return RegionReader.open(args.features, pin_memory=torch.device(args.device).type == "cuda")


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Writes scores to a JSON file; the folder is created if it does not exist."""
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
