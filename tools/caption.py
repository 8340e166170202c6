#!/usr/bin/env python3
"""The command `bua caption`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("caption")

if __name__ == "__main__":
    sys.exit(main())
