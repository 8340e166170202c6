#!/usr/bin/env python3
"""The command `bua train-grounding`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("train-grounding")

if __name__ == "__main__":
    sys.exit(main())
