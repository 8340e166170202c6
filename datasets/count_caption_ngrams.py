#!/usr/bin/env python3
"""The command `bua count-caption-ngrams`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("count-caption-ngrams")

if __name__ == "__main__":
    sys.exit(main())
