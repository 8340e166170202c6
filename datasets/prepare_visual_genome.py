#!/usr/bin/env python3
"""Prepares Visual Genome, or a data set in its files' format, for training and evaluation.

Fetches the published vocabularies and splits where they are missing (for the name visual_genome only), and writes
annotations/<name>_{train,val,test}.json. datasets/README.md shows the folder and says what to download by hand.

    python datasets/prepare_visual_genome.py --root datasets/visual_genome
    python datasets/prepare_visual_genome.py --root datasets/shapes --name shapes
"""

import argparse
import logging
import sys
from pathlib import Path

from bua.errors import command
from bua.visual_genome.download import SPLITS, VOCABULARIES, fetch_published
from bua.visual_genome.prepare import build_vocabularies, prepare


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/visual_genome"), help="default: %(default)s")
    parser.add_argument("--name", default="visual_genome", help="what the data sets are called; default: %(default)s")
    parser.add_argument(
        "--build-vocabulary",
        action="store_true",
        help="make vocabularies of the most frequent names instead of taking the published ones; "
        "weights that others released do not fit them",
    )
    parser.add_argument("--objects", type=int, default=1600, help="classes of a built vocabulary; default: %(default)s")
    parser.add_argument("--attributes", type=int, default=400, help="likewise; default: %(default)s")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if args.name == "visual_genome":
        fetch_published(args.root, SPLITS if args.build_vocabulary else SPLITS | VOCABULARIES)
    if args.build_vocabulary:
        build_vocabularies(args.root, args.objects, args.attributes)
    for split, summary in prepare(args.root, args.name).items():
        print(
            f"{split:5} {summary.images:6} of {summary.listed} images, {summary.boxes} boxes"
            f" ({summary.replaced} outside their image, now the whole of it), {summary.attributes} attributes"
            f" -> {summary.annotation_file}"
        )


if __name__ == "__main__":
    sys.exit(main())
