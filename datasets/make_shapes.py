#!/usr/bin/env python3
"""Makes the Shapes data set: drawn images in the formats of Visual Genome, VQA v2, COCO captions and Flickr30k."""

import argparse
import sys

from bua.errors import command
from bua.shapes.make import VERSIONS, make_shapes


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", default="datasets/shapes", help="folder, new or made by the same command")
    parser.add_argument("--train", type=int, default=4000, help="images to train on")
    parser.add_argument("--val", type=int, default=300, help="images to validate on")
    parser.add_argument("--test", type=int, default=500, help="images to test on")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument("--version", default="1.4", choices=VERSIONS, help="of the Visual Genome files")
    parser.add_argument("--processes", type=int, help="that draw at once (one for each CPU core if not given)")
    given = parser.parse_args(arguments)
    wrote = make_shapes(
        given.output, given.train, given.val, given.test, given.seed, given.version, processes=given.processes
    )
    count = given.train + given.val + given.test
    print(f"{given.output}: {count} images {'written' if wrote else 'were there already; nothing to do'}")


if __name__ == "__main__":
    sys.exit(main())
