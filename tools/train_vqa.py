#!/usr/bin/env python3
"""The command `bua train-vqa`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("train-vqa")

if __name__ == "__main__":
    sys.exit(main())
