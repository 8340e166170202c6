#!/usr/bin/env python3
"""Says whether features are those of a reference, such as a file that the original wrote.

    tools/verify_features.py --weights caffe.pth --images val2014 --reference train2014_obj36.tsv
    tools/verify_features.py --features mine.tsv --reference train2014_obj36.tsv

Prints a table and what is beyond the bounds. Exit code: 0 the same, 1 not the same, 2 bad input.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bua.errors import InputError, command
from bua.extraction import extract, list_images
from bua.extraction.compare import Bounds, compare_features, differences, table
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
    print(table(comparisons))
    bounds = Bounds(args.box_distance, args.cosine, args.label_agreement)
    lines = differences(comparisons, bounds)
    for line in lines[:DIFFERENCES_SHOWN]:
        print(line)
    if len(lines) > DIFFERENCES_SHOWN:
        print(f"... and {len(lines) - DIFFERENCES_SHOWN} more")
    print(
        f"bounds: boxes within {bounds.box_distance:g} pixels, features with a cosine of {bounds.cosine:g}, "
        f"labels equal for {100 * bounds.label_agreement:g} %"
    )
    print(f"{'FAIL' if lines else 'PASS'}: {len(comparisons)} images")
    return 1 if lines else 0


def extract_like(reference: FeatureStore, args: argparse.Namespace, folder: Path) -> FeatureStore:
    """The features of the reference's images, as many an image as it has where that is a fixed number."""
    wanted = {key for image_id in reference for key in (image_id, image_id_of(f"{image_id}.jpg"))}
    images = [image for image in list_images(args.images) if image.image_id in wanted]
    if not images:
        raise InputError(f"--images {args.images}: none of the {len(reference)} images of {args.reference}")
    numbers = {len(reference[image_id]) for image_id in reference}
    fixed = numbers.pop() if len(numbers) == 1 else None
    listing, output = folder / "images.txt", folder / "features.tsv"
    listing.write_text("".join(f"{Path(image.path).absolute()}\t{image.image_id}\n" for image in images))
    extract(
        listing,
        output,
        config_file=args.config_file,
        weights=args.weights,
        overrides=args.overrides,
        format="lxmert-tsv",
        min_boxes=args.min_boxes or fixed or 10,
        max_boxes=args.max_boxes or fixed or 100,
    )
    return open_features(output)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="features to compare with, in any format that bua reads")
    parser.add_argument("--features", help="compare these features, instead of extracting")
    parser.add_argument("--weights", help="the detector to extract with: a checkpoint in any released layout")
    parser.add_argument("--images", help="the reference's images, as tools/extract.py takes them")
    parser.add_argument("--config-file", default="configs/vg_r101_caffe.yaml", help="default: %(default)s")
    parser.add_argument("--min-boxes", type=int, help="default: the reference's fixed number, else 10")
    parser.add_argument("--max-boxes", type=int, help="default: the reference's fixed number, else 100")
    parser.add_argument("--box-distance", type=float, default=Bounds.box_distance, help="pixels (%(default)s)")
    parser.add_argument("--cosine", type=float, default=Bounds.cosine, help="least, of two features (%(default)s)")
    parser.add_argument(
        "--label-agreement",
        type=float,
        default=Bounds.label_agreement,
        help="least share of equal labels (%(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    args = parser.parse_intermixed_args(argv)
    if bool(args.features) == bool(args.weights and args.images):
        parser.error("give --features, or both --weights and --images")
    return args


if __name__ == "__main__":
    sys.exit(main())
