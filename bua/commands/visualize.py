r"""Draws boxes with objects and attributes on images: a data set's annotations, a detector's predictions, or both.

Examples:
    bua visualize --dataset shapes_train --what annotations --output output/look/annotations
    bua visualize --dataset shapes_test --config-file shapes.yaml --detector output/model_final.pth \
        --output output/look/detections
    bua visualize --images a.jpg b.jpg --dataset shapes_test --config-file shapes.yaml \
        --detector output/model_final.pth --output output/look/photos
"""

import argparse

from bua.commands.arguments import add_detector, add_overrides
from bua.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    add_detector(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the drawn images")
    parser.add_argument(
        "--num", type=int, default=20, help="number of images, spread evenly over the data set; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.4, help="least probability of a predicted object; default: %(default)s"
    )
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    from bua.config import load_cfg
    from bua.detection.catalog import get_dataset
    from bua.visualization.visualize import draw_dataset, draw_files, evenly, load_detector

    args.what = args.what or ("predictions" if args.images else "both")
    if args.images and args.what != "predictions":
        raise InputError(f"--what {args.what}: the files of --images have no annotations; use --what predictions")
    if args.what != "annotations" and not args.config_file:
        raise InputError(f"--config-file: is required for --what {args.what}; give it, or use --what annotations")
    if args.num < 1:
        raise InputError(f"--num: is {args.num}; give 1 or more")
    dataset = get_dataset(args.dataset)
    detector = None
    if args.what != "annotations":
        weights = ["MODEL.WEIGHTS", args.detector] if args.detector else []
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
