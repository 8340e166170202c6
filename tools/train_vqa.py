#!/usr/bin/env python3
"""Trains a model that answers questions about images, from their region features.

tools/train_vqa.py --config-file configs/vqa/updown.yaml DATA.FEATURES "('train2014.flat', 'val2014.flat')"
"""

import sys

from bua.tasks.tool import training_tool
from bua.vqa.config import load_cfg
from bua.vqa.training import train_vqa

main = training_tool(__doc__, load_cfg, train_vqa)

if __name__ == "__main__":
    sys.exit(main())
