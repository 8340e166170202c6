#!/usr/bin/env python3
"""The command `bua pack-weights`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("pack-weights")

if __name__ == "__main__":
    sys.exit(main())
