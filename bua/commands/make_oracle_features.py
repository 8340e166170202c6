"""Writes oracle features: those of a perfect detector, which encode the class, attributes and box of each object.

    bua make-oracle-features --root datasets/visual_genome --output oracle.flat
    bua make-oracle-features --root datasets/shapes --name shapes --ids coco --output oracle.flat

A model that is trained on them shows how much of its usual error comes from the detector, provided that the annotations
have all information that the task needs.
"""

import argparse
from pathlib import Path

from bua.options import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="folder that prepare-visual-genome prepared")
    parser.add_argument("--name", default="visual_genome", help="name of the data set; default: %(default)s")
    parser.add_argument("--output", required=True, help="file or folder of features")
    parser.add_argument(
        "--format", choices=FORMATS, default="flat", help="format of the features; default: %(default)s"
    )
    parser.add_argument(
        "--ids",
        choices=("visual_genome", "coco"),
        default="visual_genome",
        help="data set whose image ids the features get; default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    from bua.detection.annotations import DetectionDataset
    from bua.shapes.oracle_features import coco_ids, write_oracle_features
    from bua.visual_genome.splits import SPLITS

    datasets = [
        DetectionDataset(args.root / "annotations" / f"{args.name}_{split}.json", args.root) for split in SPLITS
    ]
    image_id_of = coco_ids(args.root / "image_data.json").get if args.ids == "coco" else int
    left_out = write_oracle_features(datasets, args.output, format=args.format, image_id_of=image_id_of)
    count = sum(map(len, datasets)) - left_out
    print(f"{args.output}: {count} images" + (f"; {left_out} without a COCO id were left out" if left_out else ""))
