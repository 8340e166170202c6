"""Makes the models that come with the package from a training of the demo, for developers of bua.

    bua pack-weights output/demo-train

It writes the weights in float16, runs the short demo with them, and writes its scores beside them.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="folder that `bua demo --train` wrote")


def run(args: argparse.Namespace) -> None:
    from bua.demo.packed import pack_weights

    for path in pack_weights(args.output):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
