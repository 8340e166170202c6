"""Checks whether features agree with a reference, such as a file that the original wrote.

    bua verify-features --detector caffe.pth --images train2014 --reference train2014_obj36.tsv
    bua verify-features --features mine.tsv --reference train2014_obj36.tsv
    bua verify-features --detector grid-feats-r50 --images train2014 --reference R-50-features/train2014
    bua verify-features --detector vinvl-x152c4 --images train2014 --reference predictions.tsv

If the reference is a folder of grid-feats-vqa's .pth files, grid features are extracted.
Prints a table and the differences that exceed the bounds. Exit code: 0 if the features agree, 1 if they differ, 2 for
bad input.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bua.commands.arguments import add_detector, add_overrides
from bua.errors import InputError
from bua.options import BOX_DISTANCE, COSINE, LABEL_AGREEMENT

if TYPE_CHECKING:
    from bua.features import FeatureStore

DIFFERENCES_SHOWN = 20
CONFIG_FILE = "vg_r101_caffe.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", required=True, help="features to compare with, in any format that bua reads")
    parser.add_argument("--features", help="features to compare, instead of extracting them")
    add_detector(parser)
    parser.add_argument(
        "--images", help="images of the reference: a folder, a glob or a list file, as for `bua extract`"
    )
    parser.add_argument(
        "--config-file",
        help=f"configuration of the detector to extract with; default: that of released weights, or {CONFIG_FILE}",
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
        default=BOX_DISTANCE,
        help="maximum distance between the sides of two boxes in pixels (%(default)s)",
    )
    parser.add_argument(
        "--cosine", type=float, default=COSINE, help="minimum cosine between two features (%(default)s)"
    )
    parser.add_argument(
        "--label-agreement",
        type=float,
        default=LABEL_AGREEMENT,
        help="minimum share of equal labels, 0 to 1 (%(default)s)",
    )
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    from bua.extraction.compare import Bounds, compare_features, find_differences, format_table
    from bua.features import open_features

    if bool(args.features) == bool(args.detector and args.images):
        raise InputError("--features, --detector: give --features, or both --detector and --images")
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


def extract_like(reference: "FeatureStore", args: argparse.Namespace, folder: Path) -> "FeatureStore":
    """Extracts the features of the reference's images, with the reference's number of regions if it is the same for all
    images; grid features if the reference has these."""
    from bua.extraction import extract, list_images
    from bua.features import open_features
    from bua.features.ids import image_id_of
    from bua.features.store import GRID_FORMATS
    from bua.weights.zoo import ZOO

    reference_ids = {key for image_id in reference for key in (image_id, image_id_of(f"{image_id}.jpg"))}
    images = [image for image in list_images(args.images) if image.image_id in reference_ids]
    if not images:
        raise InputError(f"--images {args.images}: contains none of the {len(reference)} images of {args.reference}")
    # The list of images below names whole files.
    if any(image.span for image in images):
        raise InputError(f"--images {args.images}: images in tar shards cannot be verified; unpack them into a folder")
    grid = getattr(reference, "format", "") in GRID_FORMATS
    counts = set() if grid else {len(reference[image_id]) for image_id in reference}
    fixed_count = counts.pop() if len(counts) == 1 else None
    listing, output = folder / "images.txt", folder / "features"
    listing.write_text("".join(f"{Path(image.path).absolute()}\t{image.image_id}\n" for image in images))
    extract(
        listing,
        output,
        config_file=args.config_file or (ZOO[args.detector].config if args.detector in ZOO else CONFIG_FILE),
        weights=args.detector,
        overrides=args.overrides,
        format="grid-pth" if grid else "flat",
        grid=grid,
        min_boxes=args.min_boxes or fixed_count or 10,
        max_boxes=args.max_boxes or fixed_count or 100,
    )
    return open_features(output)
