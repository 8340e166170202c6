#!/usr/bin/env python3
"""Captions images, and draws the regions that the model attends to for each word.

    tools/caption.py --image cat.jpg dog.jpg --config-file configs/vg_r101.yaml --detector detector.pth \\
        --captioner output/captioning/updown_scst/model_best.pth

Several captioners form an ensemble, which predicts each word together.
"""

import argparse
import sys
from pathlib import Path

from bua.captioning.from_image import caption_all
from bua.errors import command
from bua.extraction.image_tool import chosen_extractor, image_parser
from bua.visualization.draw import save_image


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    extractor = chosen_extractor(args)
    beam = ["DECODING.BEAM", str(args.beam)] if args.beam else []
    captioned = caption_all(args.image, extractor=extractor, captioner=args.captioner, overrides=beam)
    for image, found in zip(args.image, captioned):
        print(f"{image}: {found.captions[0].text}")
        for candidate in found.captions:
            print(f"  {candidate.score:8.2f}  {candidate.text}")
        strip = Path(args.output) / f"{Path(image).stem}_caption.jpg"
        save_image(strip, found.strip)
        print(f"  the model's attention: {strip}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = image_parser(__doc__, several=True)
    parser.add_argument("--captioner", required=True, nargs="+", help="checkpoints that tools/train_caption.py wrote")
    parser.add_argument("--beam", type=int, help="width of the beam search; default: as in training")
    parser.add_argument("--output", default=".", help="folder for the drawings, <image>_caption.jpg (%(default)s)")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
