"""Trains a model that answers questions about images, from their region features.

    bua train-vqa --config-file vqa/updown.yaml DATA.FEATURES "('train2014.flat', 'val2014.flat')"

DATA.FEATURES names the files of features that `bua extract` wrote, a file or several.
"""

import argparse

from bua.commands.arguments import add_training_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    from bua.tasks.tool import run_training
    from bua.vqa.config import load_cfg
    from bua.vqa.training import train_vqa

    return run_training(train_vqa, load_cfg(args.config_file, args.overrides), args)
