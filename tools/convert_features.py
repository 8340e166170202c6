#!/usr/bin/env python3
"""Copies features from one format to another.

    tools/convert_features.py features.tsv features.hdf5 --format ban-hdf5
    tools/convert_features.py train2014_obj36.tsv train36.hdf5 --format hdf5
    tools/convert_features.py train2014_obj36.tsv train36.flat --format flat-fp16 --ids number
    tools/convert_features.py val36.flat val2014_obj36.tsv --format lxmert-tsv --ids "COCO_val2014_{:012d}"
    tools/convert_features.py visual_genome coco --format flat-fp16 --ids coco_of_visual_genome.tsv

hdf5 needs the same number of boxes for all images; ban-hdf5 takes any number. The format of the source is recognised
from its content. A run that was stopped continues when it is started again.
"""

import argparse
import sys

from bua.errors import command
from bua.features import FORMATS, convert_features
from bua.vocabulary import Vocabulary


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    about = {
        f"{kind}_vocabulary": Vocabulary.read(path).names
        for kind, path in (("object", args.object_vocabulary), ("attribute", args.attribute_vocabulary))
        if path
    }
    copied = convert_features(args.source, args.target, args.format, about, args.ids)
    print(f"{args.target}: {copied} images copied")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="features in any format that bua reads")
    parser.add_argument("target", help="file to write; a folder for npz, mmf, vilbert-lmdb, flat and flat-fp16")
    parser.add_argument("--format", required=True, choices=FORMATS, help="format of the target")
    parser.add_argument(
        "--ids",
        default="keep",
        help="how to change the ids of images. keep (default): not at all; number: COCO_val2014_000000000042 becomes "
        "42; a pattern: numbers become such names, which LXMERT's readers expect; or a file with lines old<TAB>new: "
        "only the images in it are copied",
    )
    parser.add_argument("--object-vocabulary", help="file with the names of the object classes, which vinvl-tsv needs")
    parser.add_argument("--attribute-vocabulary", help="file with the names of the attributes, which vinvl-tsv needs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
