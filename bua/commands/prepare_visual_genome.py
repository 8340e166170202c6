"""Prepares Visual Genome, or another data set in the same format, for training and evaluating a detector.

The program writes annotations/<name>_{train,val,test}.json. With the name visual_genome it first downloads the
published vocabularies and splits if they are missing. bua download visual-genome fetches everything that it needs, and
datasets/README.md describes the folder.

    bua prepare-visual-genome --root datasets/visual_genome
    bua prepare-visual-genome --root datasets/shapes --name shapes
    bua prepare-visual-genome --root datasets/mine --name mine --build-vocabulary --build-splits
"""

import argparse
import logging
from pathlib import Path

from bua.errors import InputError

# Options that only mean something together with another one.
_PARTS = {
    "build_vocabulary": ("objects", "attributes", "relations"),
    "build_splits": ("val_images", "test_images", "coco_splits"),
}


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
        help="build vocabularies of the most frequent names instead of using the published ones, and write how often "
        "each name occurs; released weights do not fit them",
    )
    # The original's numbers are in bua.visual_genome.vocabulary and bua.visual_genome.splits.
    for kind, number in (("objects", "2500"), ("attributes", "1000"), ("relations", "500")):
        parser.add_argument(
            f"--{kind}", type=int, metavar="N", help=f"number of {kind} to build; default: {number}, or all"
        )
    parser.add_argument(
        "--build-splits",
        action="store_true",
        help="build splits at random from image_data.json, as the original did, instead of using the published ones",
    )
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}-images", type=int, metavar="N", help=f"number of images of {split} to build; default: 5000"
        )
    parser.add_argument(
        "--coco-splits",
        type=Path,
        metavar="FILE",
        help="Karpathy's dataset_coco.json: his images of COCO get his splits in the splits to build; or a folder of "
        "the original's karpathy_{train,val,test}_images.txt",
    )


def run(args: argparse.Namespace) -> None:
    from bua.visual_genome.download import RELATIONS, SPLITS, VOCABULARIES, download_missing, download_optional
    from bua.visual_genome.prepare import prepare
    from bua.visual_genome.sources import Sources, write_lists
    from bua.visual_genome.splits import NUM_IMAGES, choose_splits
    from bua.visual_genome.vocabulary import choose_vocabularies

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    for whole, parts in _PARTS.items():
        for part in parts:
            if getattr(args, part) is not None and not getattr(args, whole):
                raise InputError(f"{_option(part)}: is only for {_option(whole)}; add it, or leave this one out")
    if args.name == "visual_genome":
        # Where nothing is downloaded yet, this says how to fetch everything, and not one of the small files alone.
        Sources.find(args.root)
        if not args.build_splits:
            download_missing(args.root, SPLITS)
        if not args.build_vocabulary:
            download_missing(args.root, VOCABULARIES)
            download_optional(args.root, RELATIONS)
    # Both are checked before either is written, since lists that are there already are not written again.
    splits: dict[Path, list[str]] = {}
    vocabularies: dict[Path, list[str]] = {}
    if args.build_splits:
        num_val, num_test = (NUM_IMAGES if size is None else size for size in (args.val_images, args.test_images))
        splits = choose_splits(args.root, num_val, num_test, args.coco_splits)
    if args.build_vocabulary:
        vocabularies = choose_vocabularies(args.root, args.objects, args.attributes, args.relations)
    write_lists(splits | vocabularies)
    if splits:
        print(f"splits: {', '.join(f'{len(lines)} {path.stem}' for path, lines in splits.items())}")
    for split, summary in prepare(args.root, args.name).items():
        print(
            f"{split:5} {summary.images:6} of {summary.listed} images, {summary.boxes} boxes"
            f" ({summary.replaced} outside their image, replaced by the whole image), {summary.attributes} attributes,"
            f" {summary.relations} relations -> {summary.annotation_file}"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
