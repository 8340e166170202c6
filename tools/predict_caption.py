#!/usr/bin/env python3
"""The command `bua predict-caption`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("predict-caption")

if __name__ == "__main__":
    sys.exit(main())
