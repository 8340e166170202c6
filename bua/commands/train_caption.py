"""Trains a model that captions images, from their region features.

    bua train-caption --config-file captioning/updown.yaml DATA.FEATURES "('train2014.flat', 'val2014.flat')"
    bua train-caption --config-file captioning/updown_scst.yaml \\
        DATA.FEATURES "('train2014.flat', 'val2014.flat')" MODEL.WEIGHTS output/captioning/updown/model_best.pth
"""

import argparse

from bua.commands.arguments import add_training_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    from bua.captioning.config import load_cfg
    from bua.captioning.training import train_caption
    from bua.tasks.tool import run_training

    return run_training(train_caption, load_cfg(args.config_file, args.overrides), args)
