#!/usr/bin/env python3
"""The command `bua make-oracle-features`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("make-oracle-features")

if __name__ == "__main__":
    sys.exit(main())
