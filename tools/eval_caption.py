#!/usr/bin/env python3
"""The command `bua eval-caption`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("eval-caption")

if __name__ == "__main__":
    sys.exit(main())
