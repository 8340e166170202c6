#!/usr/bin/env python3
"""The command `bua predict-vqa`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("predict-vqa")

if __name__ == "__main__":
    sys.exit(main())
