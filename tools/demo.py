#!/usr/bin/env python3
"""The command `bua demo`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("demo")

if __name__ == "__main__":
    sys.exit(main())
