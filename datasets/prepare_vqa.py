#!/usr/bin/env python3
"""The command `bua prepare-vqa`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("prepare-vqa")

if __name__ == "__main__":
    sys.exit(main())
