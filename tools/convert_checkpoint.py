#!/usr/bin/env python3
"""The command `bua convert-checkpoint`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("convert-checkpoint")

if __name__ == "__main__":
    sys.exit(main())
