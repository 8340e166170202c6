#!/usr/bin/env python3
"""Trains a model that captions images, from their region features.

tools/train_caption.py --config-file configs/captioning/updown.yaml DATA.FEATURES "('train2014.flat', 'val2014.flat')"
tools/train_caption.py --config-file configs/captioning/updown_scst.yaml \\
    DATA.FEATURES "('train2014.flat', 'val2014.flat')" MODEL.WEIGHTS output/captioning/updown/model_best.pth
"""

import sys

from bua.captioning.config import load_cfg
from bua.captioning.training import train_caption
from bua.tasks.tool import training_tool

main = training_tool(__doc__, load_cfg, train_caption)

if __name__ == "__main__":
    sys.exit(main())
