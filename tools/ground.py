#!/usr/bin/env python3
"""Finds what the phrases of a sentence mean in an image, and draws each one's box in a colour of its own.

    tools/ground.py --image cat.jpg --sentence "a man in a hat holds a dog" \\
        --config-file configs/vg_r101.yaml --detector detector.pth --grounding output/grounding/ban/model_best.pth

Where the phrases are not the wanted ones, brackets say which: "[a man] in [a hat] holds [a dog]".
"""

import argparse
import logging
import sys
from pathlib import Path

from bua.errors import command
from bua.extraction.extractor_config import extractor_config
from bua.grounding.from_image import ground
from bua.visualization.draw import save_image


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    extractor = extractor_config(
        args.config_file, args.detector, args.overrides, min_boxes=args.min_boxes, max_boxes=args.max_boxes
    )
    found = ground(args.image, args.sentence, extractor=extractor, grounding=args.grounding)
    for phrase in found.phrases:
        corners = ", ".join(f"{corner:.0f}" for corner in phrase.box)
        print(f"{phrase.scores[phrase.region]:6.1%}  {phrase.text} -> [{corners}]")
    output = args.output or f"{Path(args.image).stem}_grounded.jpg"
    save_image(output, found.drawing)
    print(f"the boxes: {output}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--sentence", required=True, help="in lower case or not; brackets around phrases are optional")
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--detector", help="its checkpoint; default: MODEL.WEIGHTS of the configuration")
    parser.add_argument("--grounding", required=True, help="checkpoint that tools/train_grounding.py wrote")
    parser.add_argument("--min-boxes", type=int, default=10, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=100, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--output", help="image with the boxes; default: <image>_grounded.jpg")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="detector configuration keys and values")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
