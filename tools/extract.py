#!/usr/bin/env python3
"""The command `bua extract`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("extract")

if __name__ == "__main__":
    sys.exit(main())
