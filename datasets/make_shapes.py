#!/usr/bin/env python3
"""Makes the Shapes data set: drawn images with annotations in the formats of Visual Genome, VQA v2, COCO and Flickr30k.

    python datasets/make_shapes.py --output datasets/shapes

datasets/README.md says how to prepare the result for each task.
"""

import argparse
import sys

from bua.errors import command
from bua.shapes.make import VERSIONS, make_shapes


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        "--version", default="1.4", choices=VERSIONS, help="version of the Visual Genome files; default: %(default)s"
    )
    parser.add_argument("--processes", type=int, help="number of drawing processes; default: one per CPU core")
    given = parser.parse_args(arguments)
    wrote = make_shapes(
        given.output, given.train, given.val, given.test, given.seed, given.version, processes=given.processes
    )
    count = given.train + given.val + given.test
    print(f"{given.output}: {count} images {'written' if wrote else 'were there already; nothing to do'}")


if __name__ == "__main__":
    sys.exit(main())
