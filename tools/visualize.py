#!/usr/bin/env python3
r"""Draws boxes with objects and attributes on images: a data set's annotations, a detector's predictions, or both.

Examples:
    tools/visualize.py --dataset shapes_train --what annotations --output output/look/annotations
    tools/visualize.py --dataset shapes_test --config-file configs/shapes.yaml --weights output/model_final.pth \
        --output output/look/detections
    tools/visualize.py --images a.jpg b.jpg --dataset shapes_test --config-file configs/shapes.yaml \
        --weights output/model_final.pth --output output/look/photos
"""

import argparse
import sys

from bua.config import load_cfg
from bua.detection.catalog import get_dataset
from bua.errors import InputError, command
from bua.visualization.visualize import draw_dataset, draw_files, evenly, load_detector


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset",
        required=True,
        help="data set such as shapes_test; with --images, only the names of its classes are used",
    )
    parser.add_argument(
        "--what",
        choices=("annotations", "predictions", "both"),
        help="default: both, with the annotations on the left; for --images, predictions",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="FILE", help="image files to draw, instead of the data set's images"
    )
    parser.add_argument("--config-file", help="configuration of the detector; required for predictions")
    parser.add_argument("--weights", help="checkpoint of the detector; default: MODEL.WEIGHTS of the configuration")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the drawn images")
    parser.add_argument(
        "--num", type=int, default=20, help="number of images, spread evenly over the data set; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.4, help="least probability of a predicted object; default: %(default)s"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="keys and values that are set in the configuration"
    )
    args = parser.parse_intermixed_args(argv)
    args.what = args.what or ("predictions" if args.images else "both")
    return args


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.images and args.what != "predictions":
        raise InputError(f"--what {args.what}: the files of --images have no annotations; use --what predictions")
    if args.what != "annotations" and not args.config_file:
        raise InputError(f"--config-file: is required for --what {args.what}; give it, or use --what annotations")
    if args.num < 1:
        raise InputError(f"--num: is {args.num}; give 1 or more")
    dataset = get_dataset(args.dataset)
    detector = None
    if args.what != "annotations":
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        detector = load_detector(load_cfg(args.config_file, [*args.overrides, *weights]), dataset)
    if args.images:
        assert detector is not None  # --images is refused for annotations
        files = draw_files(
            args.images,
            args.output,
            detector=detector,
            objects=dataset.objects,
            attributes=dataset.attribute_names,
            threshold=args.threshold,
        )
    else:
        files = draw_dataset(
            dataset,
            evenly(dataset, args.num),
            args.output,
            detector=detector,
            annotations=args.what != "predictions",
            threshold=args.threshold,
        )
    print(f"{len(files)} images in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
