"""Makes the Shapes data set: drawn images with annotations in the formats of Visual Genome, VQA v2, COCO and Flickr30k.

    bua make-shapes --output datasets/shapes

datasets/README.md says how to prepare the result for each task.
"""

import argparse

from bua.options import SHAPES_VERSIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        default="datasets/shapes",
        help="folder, which is new or was made by the same command; default: %(default)s",
    )
    parser.add_argument("--train", type=int, default=4000, help="number of training images; default: %(default)s")
    parser.add_argument("--val", type=int, default=300, help="number of validation images; default: %(default)s")
    parser.add_argument("--test", type=int, default=500, help="number of test images; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed gives the same bytes; default: %(default)s"
    )
    parser.add_argument(
        "--version",
        default="1.4",
        choices=SHAPES_VERSIONS,
        help="version of the Visual Genome files; default: %(default)s",
    )
    parser.add_argument("--processes", type=int, help="number of drawing processes; default: one per CPU core")


def run(args: argparse.Namespace) -> None:
    from bua.shapes.make import make_shapes

    wrote = make_shapes(args.output, args.train, args.val, args.test, args.seed, args.version, processes=args.processes)
    count = args.train + args.val + args.test
    print(f"{args.output}: {count} images {'written' if wrote else 'were there already; nothing to do'}")
