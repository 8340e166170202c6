#!/usr/bin/env python3
"""The command `bua ground`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("ground")

if __name__ == "__main__":
    sys.exit(main())
