"""Prepares Visual Genome, or another data set in the same format, for training and evaluating a detector.

The program writes annotations/<name>_{train,val,test}.json. With the name visual_genome it first downloads the
published vocabularies and splits if they are missing. bua download visual-genome fetches everything that it needs, and
datasets/README.md describes the folder.

    bua prepare-visual-genome --root datasets/visual_genome
    bua prepare-visual-genome --root datasets/shapes --name shapes
"""

import argparse
import logging
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, default=Path("datasets/visual_genome"), help="folder of the data set; default: %(default)s"
    )
    parser.add_argument(
        "--name", default="visual_genome", help="first part of the data sets' names; default: %(default)s"
    )
    parser.add_argument(
        "--build-vocabulary",
        action="store_true",
        help="build vocabularies of the most frequent names instead of using the published ones; "
        "released weights do not fit them",
    )
    parser.add_argument(
        "--objects", type=int, default=1600, help="number of object classes to build; default: %(default)s"
    )
    parser.add_argument(
        "--attributes", type=int, default=400, help="number of attributes to build; default: %(default)s"
    )


def run(args: argparse.Namespace) -> None:
    from bua.visual_genome.download import SPLITS, VOCABULARIES, download_missing
    from bua.visual_genome.prepare import build_vocabularies, prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if args.name == "visual_genome":
        download_missing(args.root, SPLITS if args.build_vocabulary else SPLITS | VOCABULARIES)
    if args.build_vocabulary:
        build_vocabularies(args.root, args.objects, args.attributes)
    for split, summary in prepare(args.root, args.name).items():
        print(
            f"{split:5} {summary.images:6} of {summary.listed} images, {summary.boxes} boxes"
            f" ({summary.replaced} outside their image, replaced by the whole image), {summary.attributes} attributes"
            f" -> {summary.annotation_file}"
        )
