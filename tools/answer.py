#!/usr/bin/env python3
"""Answers a question about an image, and draws the regions that the model attends to.

    tools/answer.py --image cat.jpg --question "what colour is the cat?" \\
        --config-file configs/vg_r101.yaml --detector detector.pth --vqa output/vqa/updown/model_best.pth
"""

import argparse
import sys
from pathlib import Path

from bua.errors import command
from bua.extraction.image_tool import chosen_extractor, image_parser
from bua.visualization.draw import save_image
from bua.vqa.from_image import answer


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    found = answer(args.image, args.question, extractor=chosen_extractor(args), vqa=args.vqa, top=args.top)
    # The scores do not sum to 1: each is the official accuracy that the model expects of the answer.
    print("expected accuracy  answer")
    for candidate in found.answers:
        print(f"{candidate.score:17.2f}  {candidate.text}")
    output = args.output or f"{Path(args.image).stem}_answer.jpg"
    save_image(output, found.drawing)
    print(f"the model's attention: {output}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = image_parser(__doc__)
    parser.add_argument("--question", required=True, help="question about the image")
    parser.add_argument("--vqa", required=True, help="checkpoint that tools/train_vqa.py wrote")
    parser.add_argument("--top", type=int, default=5, help="number of answers (%(default)s)")
    parser.add_argument("--output", help="file for the drawing; default: <image>_answer.jpg")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
