"""The command line of the tools that train a head."""

import argparse
import sys
from collections.abc import Callable

from fvcore.common.config import CfgNode

from bua.engine.launch import launch
from bua.engine.trainer import NonFiniteLoss

TRAINING_FAILED = 1


def training_tool(
    description: str,
    load_cfg: Callable[[str, list[str]], CfgNode],
    train: Callable[[CfgNode, bool], dict[str, float]],
    argv: list[str] | None,
) -> int:
    """Reads the arguments, and trains on as many devices as they say.

    Args:
        description: of the tool.
        load_cfg: of a YAML file and ``KEY VALUE`` pairs.
        train: of the configuration, and whether to resume.

    Returns:
        the tool's exit code.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file in configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, one a GPU (or on the CPU)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    args = parser.parse_intermixed_args(argv)
    cfg = load_cfg(args.config_file, args.overrides)
    try:
        launch(train, (cfg, args.resume), num_processes=args.num_gpus)
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return TRAINING_FAILED
    return 0
