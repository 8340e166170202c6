"""``python -m bua``: the program ``bua``."""

import sys

from bua.commands import main

if __name__ == "__main__":
    sys.exit(main())
