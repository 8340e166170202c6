#!/usr/bin/env python3
"""Checks whether features agree with a reference, such as a file that the original wrote.

    tools/verify_features.py --weights caffe.pth --images train2014 --reference train2014_obj36.tsv
    tools/verify_features.py --features mine.tsv --reference train2014_obj36.tsv

Prints a table and the differences that exceed the bounds. Exit code: 0 if the features agree, 1 if they differ, 2 for
bad input.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bua.errors import InputError, command
from bua.extraction import extract, list_images
from bua.extraction.compare import Bounds, compare_features, find_differences, format_table
from bua.features import FeatureStore, open_features
from bua.features.ids import image_id_of

DIFFERENCES_SHOWN = 20


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    reference = open_features(args.reference)
    if args.features:
        comparisons = compare_features(open_features(args.features), reference)
    else:
        with tempfile.TemporaryDirectory() as folder:
            comparisons = compare_features(extract_like(reference, args, Path(folder)), reference)
    print(format_table(comparisons))
    bounds = Bounds(args.box_distance, args.cosine, args.label_agreement)
    lines = find_differences(comparisons, bounds)
    for line in lines[:DIFFERENCES_SHOWN]:
        print(line)
    if len(lines) > DIFFERENCES_SHOWN:
        print(f"... and {len(lines) - DIFFERENCES_SHOWN} more")
    print(
        f"bounds: boxes within {bounds.box_distance:g} pixels, features with a cosine of at least {bounds.cosine:g}, "
        f"equal labels for at least {100 * bounds.label_agreement:g} % of the regions"
    )
    print(f"{'FAIL' if lines else 'PASS'}: {len(comparisons)} images")
    return 1 if lines else 0


def extract_like(reference: FeatureStore, args: argparse.Namespace, folder: Path) -> FeatureStore:
    """Extracts the features of the reference's images, with the reference's number of regions if it is the same for all
    images."""
    reference_ids = {key for image_id in reference for key in (image_id, image_id_of(f"{image_id}.jpg"))}
    images = [image for image in list_images(args.images) if image.image_id in reference_ids]
    if not images:
        raise InputError(f"--images {args.images}: contains none of the {len(reference)} images of {args.reference}")
    # The list of images below names whole files.
    if any(image.span for image in images):
        raise InputError(f"--images {args.images}: images in tar shards cannot be verified; unpack them into a folder")
    counts = {len(reference[image_id]) for image_id in reference}
    fixed_count = counts.pop() if len(counts) == 1 else None
    listing, output = folder / "images.txt", folder / "features.tsv"
    listing.write_text("".join(f"{Path(image.path).absolute()}\t{image.image_id}\n" for image in images))
    extract(
        listing,
        output,
        config_file=args.config_file,
        weights=args.weights,
        overrides=args.overrides,
        format="lxmert-tsv",
        min_boxes=args.min_boxes or fixed_count or 10,
        max_boxes=args.max_boxes or fixed_count or 100,
    )
    return open_features(output)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="features to compare with, in any format that bua reads")
    parser.add_argument("--features", help="features to compare, instead of extracting them")
    parser.add_argument("--weights", help="the detector to extract with: a checkpoint in any released layout")
    parser.add_argument(
        "--images", help="images of the reference: a folder, a glob or a list file, as for tools/extract.py"
    )
    parser.add_argument(
        "--config-file",
        default="configs/vg_r101_caffe.yaml",
        help="configuration of the detector to extract with; default: %(default)s",
    )
    parser.add_argument(
        "--min-boxes",
        type=int,
        help="minimum number of regions per image; default: the reference's number if it is fixed, otherwise 10",
    )
    parser.add_argument(
        "--max-boxes",
        type=int,
        help="maximum number of regions per image; default: the reference's number if it is fixed, otherwise 100",
    )
    parser.add_argument(
        "--box-distance",
        type=float,
        default=Bounds.box_distance,
        help="maximum distance between the sides of two boxes in pixels (%(default)s)",
    )
    parser.add_argument(
        "--cosine", type=float, default=Bounds.cosine, help="minimum cosine between two features (%(default)s)"
    )
    parser.add_argument(
        "--label-agreement",
        type=float,
        default=Bounds.label_agreement,
        help="minimum share of equal labels, 0 to 1 (%(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the configuration and their values")
    args = parser.parse_intermixed_args(argv)
    if bool(args.features) == bool(args.weights and args.images):
        parser.error("give --features, or both --weights and --images")
    return args


if __name__ == "__main__":
    sys.exit(main())
