#!/usr/bin/env python3
"""Trains a model that finds the region that a phrase means, on region features and Flickr30k Entities.

tools/train_grounding.py --config-file configs/grounding/ban.yaml DATA.FEATURES "('flickr30k.flat',)"
"""

import sys

from bua.grounding.config import load_cfg
from bua.grounding.training import train_grounding
from bua.tasks.tool import training_tool

main = training_tool(__doc__, load_cfg, train_grounding)

if __name__ == "__main__":
    sys.exit(main())
