"""Copies features from one format to another.

    bua convert-features features.tsv features.hdf5 --format ban-hdf5
    bua convert-features train2014_obj36.tsv train36.hdf5 --format hdf5
    bua convert-features train2014_obj36.tsv train36.flat --format flat-fp16 --ids number
    bua convert-features val36.flat val2014_obj36.tsv --format lxmert-tsv --ids "COCO_val2014_{:012d}"
    bua convert-features visual_genome coco --format flat-fp16 --ids coco_of_visual_genome.tsv
    bua convert-features val36.flat val36.lmdb --for volta

hdf5 needs the same number of boxes for all images; ban-hdf5 takes any number. The format of the source is recognised
from its content. A run that was stopped continues when it is started again.
"""

import argparse
import sys
from pathlib import Path

from bua.commands.arguments import add_reader
from bua.errors import InputError
from bua.options import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="features in any format that bua reads")
    parser.add_argument(
        "target", help="file to write; a folder for npz, mmf, vilbert-lmdb, grid-pth, flat and flat-fp16"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="format of the target; default: that of the reader that --for names"
    )
    add_reader(parser)
    parser.add_argument(
        "--ids",
        default="keep",
        help="how to change the ids of images. keep (default): not at all; number: COCO_val2014_000000000042 becomes "
        "42; a pattern: numbers become such names, which LXMERT's readers expect; or a file with lines old<TAB>new: "
        "only the images in it are copied",
    )
    parser.add_argument(
        "--vocabulary",
        help="folder of objects_vocab.txt and attributes_vocab.txt, or VinVL's JSON file of names, for formats that "
        "store class names; default: the names that the source holds",
    )
    parser.add_argument("--object-vocabulary", metavar="FILE", help="file with the names of the object classes alone")
    parser.add_argument("--attribute-vocabulary", metavar="FILE", help="file with the names of the attributes alone")


def run(args: argparse.Namespace) -> int:
    from bua.features import convert_features
    from bua.features.flat_files import lost_records
    from bua.vocabulary import Vocabulary

    about = {
        f"{kind}_vocabulary": Vocabulary.read(path).names
        for kind, path in (("object", args.object_vocabulary), ("attribute", args.attribute_vocabulary))
        if path
    }
    if args.vocabulary:
        from bua.extraction.class_names import names_in

        if about:
            raise InputError("--vocabulary: names objects and attributes; leave out the options for one of them")
        about = {f"{kind}_vocabulary": names_in(args.vocabulary, f"{kind}s") for kind in ("object", "attribute")}
    copied = convert_features(args.source, args.target, args.format, about, args.ids, args.reader)
    print(f"{args.target}: {copied} images copied")
    if lost := lost_records(Path(args.source)):
        print(f"error: {args.source}: its index.bin has lost {lost} images; copy it again", file=sys.stderr)
        return 1
    return 0
