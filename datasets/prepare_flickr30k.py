#!/usr/bin/env python3
"""The command `bua prepare-flickr30k`, as a program of a checkout."""

import sys

from bua.commands import script

main = script("prepare-flickr30k")

if __name__ == "__main__":
    sys.exit(main())
