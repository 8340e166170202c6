#!/usr/bin/env python3
"""The command `bua verify-features`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("verify-features")

if __name__ == "__main__":
    sys.exit(main())
