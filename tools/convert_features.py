#!/usr/bin/env python3
"""Copies features from one format to another.

    tools/convert_features.py features.tsv train36.hdf5 --format hdf5
    tools/convert_features.py train2014_obj36.tsv features --format flat-fp16 --ids number
    tools/convert_features.py features val2014_obj36.tsv --format lxmert-tsv --ids "COCO_val2014_{:012d}"
    tools/convert_features.py visual_genome coco --format flat-fp16 --ids coco_of_visual_genome.tsv

Any format is read, and told from the content. A run that was stopped goes on when it is started again.
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
    parser.add_argument("target", help="a file, or a folder for npz, mmf and flat")
    parser.add_argument("--format", required=True, choices=FORMATS, help="of the target")
    parser.add_argument(
        "--ids",
        default="keep",
        help="keep (default); number: of COCO_val2014_000000000042 make 42; a pattern that makes such names of "
        "numbers, which LXMERT's readers look for; or a file with lines old<TAB>new, whose images alone are copied",
    )
    parser.add_argument("--object-vocabulary", help="the names of the objects' labels, which vinvl-tsv needs")
    parser.add_argument("--attribute-vocabulary", help="the names of the attributes' labels, likewise")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
