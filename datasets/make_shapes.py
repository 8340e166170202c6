#!/usr/bin/env python3
"""The command `bua make-shapes`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("make-shapes")

if __name__ == "__main__":
    sys.exit(main())
