#!/usr/bin/env python3
"""Captions images, and draws where the model looked for each word.

    tools/caption.py --image cat.jpg dog.jpg --config-file configs/vg_r101.yaml --detector detector.pth \\
        --captioner output/captioning/updown_scst/model_best.pth

Several captioners predict each word together.
"""

import argparse
import sys
from pathlib import Path

from bua.captioning.from_image import caption_all
from bua.errors import command
from bua.extraction.extractor_config import extractor_config
from bua.visualization.draw import save_image


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    extractor = extractor_config(
        args.config_file, args.detector, args.overrides, min_boxes=args.min_boxes, max_boxes=args.max_boxes
    )
    beam = ["DECODING.BEAM", str(args.beam)] if args.beam else []
    for image, found in zip(
        args.image, caption_all(args.image, extractor=extractor, captioner=args.captioner, overrides=beam)
    ):
        print(f"{image}: {found.captions[0].text}")
        for candidate in found.captions:
            print(f"  {candidate.score:8.2f}  {candidate.text}")
        strip = Path(args.output) / f"{Path(image).stem}_caption.jpg"
        save_image(strip, found.strip)
        print(f"  where it looked: {strip}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, nargs="+", help="image files")
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--detector", help="its checkpoint; default: MODEL.WEIGHTS of the configuration")
    parser.add_argument("--captioner", required=True, nargs="+", help="checkpoints that tools/train_caption.py wrote")
    parser.add_argument("--beam", type=int, help="captions that compete; default: as the captioner was trained")
    parser.add_argument("--min-boxes", type=int, default=10, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=100, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--output", default=".", help="folder for the strips, <image>_caption.jpg (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="detector configuration keys and values, before --image"
    )
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
