#!/usr/bin/env python3
"""The command `bua inspect-features`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("inspect-features")

if __name__ == "__main__":
    sys.exit(main())
