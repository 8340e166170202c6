#!/usr/bin/env python3
"""The command `bua prepare-visual-genome`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("prepare-visual-genome")

if __name__ == "__main__":
    sys.exit(main())
