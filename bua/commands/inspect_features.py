"""Prints a summary of a file or folder of features in any format, and what is wrong with it.

    bua inspect-features features.tsv
    bua inspect-features train36.hdf5 --json

Exit code: 0 if nothing is wrong, 1 if something is wrong, 2 if the features cannot be opened.
"""

import argparse
import dataclasses
import json
import math

LINES_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="features in any format that bua reads")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, with all messages")


def run(args: argparse.Namespace) -> int:
    from bua.features.summary import summarize

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
