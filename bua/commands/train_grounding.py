"""Trains a model that finds the region that a phrase means, on region features and Flickr30k Entities.

    bua train-grounding --config-file grounding/ban.yaml DATA.FEATURES flickr30k.flat

DATA.FEATURES names the files of features that `bua extract` wrote, a file or several.
"""

import argparse

from bua.commands.arguments import add_training_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    from bua.grounding.config import load_cfg
    from bua.grounding.training import train_grounding
    from bua.tasks.tool import run_training

    return run_training(train_grounding, load_cfg(args.config_file, args.overrides), args)
