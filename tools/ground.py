#!/usr/bin/env python3
"""Finds the phrases of a sentence in an image, and draws the box of each phrase in a separate colour.

    tools/ground.py --image cat.jpg --sentence "a man in a hat holds a dog" \\
        --config-file configs/vg_r101.yaml --detector detector.pth --grounding output/grounding/ban/model_best.pth

If the tool finds other phrases than you mean, mark them with brackets: "[a man] in [a hat] holds [a dog]".
"""

import argparse
import logging
import sys
from pathlib import Path

from bua.errors import command
from bua.extraction.image_tool import chosen_extractor, image_parser
from bua.grounding.from_image import ground
from bua.visualization.draw import save_image


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    found = ground(args.image, args.sentence, extractor=chosen_extractor(args), grounding=args.grounding)
    for phrase in found.phrases:
        corners = ", ".join(f"{corner:.0f}" for corner in phrase.box)
        print(f"{phrase.scores[phrase.region]:6.1%}  {phrase.text} -> [{corners}]")
    output = args.output or f"{Path(args.image).stem}_grounded.jpg"
    save_image(output, found.drawing)
    print(f"the boxes: {output}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = image_parser(__doc__)
    parser.add_argument("--sentence", required=True, help="sentence about the image; its phrases may be in brackets")
    parser.add_argument("--grounding", required=True, help="checkpoint that tools/train_grounding.py wrote")
    parser.add_argument("--output", help="file for the drawing; default: <image>_grounded.jpg")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
