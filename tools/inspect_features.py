#!/usr/bin/env python3
"""Prints a summary of a file or folder of features in any format, and what is wrong with it.

    tools/inspect_features.py features.tsv
    tools/inspect_features.py train36.hdf5 --json

Exit code: 0 if nothing is wrong, 1 if something is wrong, 2 if the features cannot be opened.
"""

import argparse
import dataclasses
import json
import math
import sys

from bua.errors import command
from bua.features.summary import summarize

LINES_SHOWN = 20


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    summary = summarize(args.path)
    faults = summary.faults()
    if args.json:
        values = {**dataclasses.asdict(summary), "faults": faults}
        # Without features, the minimum and maximum are infinite, which JSON cannot represent.
        print(json.dumps({key: None if value in (math.inf, -math.inf) else value for key, value in values.items()}))
    else:
        print("\n".join(summary.lines()))
        for fault in faults:
            print(f"wrong: {fault}")
        lines = [*summary.unreadable, *summary.problems]
        for line in lines[:LINES_SHOWN]:
            print(f"  {line}")
        if len(lines) > LINES_SHOWN:
            print(f"  ... and {len(lines) - LINES_SHOWN} more (use --json to print all)")
    return 1 if faults else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="features in any format that bua reads")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, with all messages")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
