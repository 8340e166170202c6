#!/usr/bin/env python3
"""Trains a model that finds the region that a phrase means, on region features and Flickr30k Entities.

tools/train_grounding.py --config-file configs/grounding/ban.yaml DATA.FEATURES "('flickr30k.flat',)"
"""

import sys

from bua.errors import command
from bua.grounding.config import load_cfg
from bua.grounding.training import train_grounding
from bua.tasks.tool import training_tool


@command
def main(argv: list[str] | None = None) -> int:
    return training_tool(__doc__, load_cfg, train_grounding, argv)


if __name__ == "__main__":
    sys.exit(main())
