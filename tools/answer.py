#!/usr/bin/env python3
"""Answers a question about an image, and draws where the model looked.

    tools/answer.py --image cat.jpg --question "what colour is the cat?" \\
        --config-file configs/vg_r101.yaml --detector detector.pth --vqa output/vqa/updown/model_best.pth
"""

import argparse
import sys
from pathlib import Path

from bua.errors import command
from bua.extraction.extractor_config import extractor_config
from bua.visualization.draw import save_image
from bua.vqa.from_image import answer


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    extractor = extractor_config(
        args.config_file, args.detector, args.overrides, min_boxes=args.min_boxes, max_boxes=args.max_boxes
    )
    found = answer(args.image, args.question, extractor=extractor, vqa=args.vqa, top=args.top)
    for candidate in found.answers:
        print(f"{candidate.score:6.1%}  {candidate.text}")
    output = args.output or f"{Path(args.image).stem}_answer.jpg"
    save_image(output, found.drawing)
    print(f"where it looked: {output}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--question", required=True)
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--detector", help="its checkpoint; default: MODEL.WEIGHTS of the configuration")
    parser.add_argument("--vqa", required=True, help="checkpoint that tools/train_vqa.py wrote")
    parser.add_argument("--min-boxes", type=int, default=10, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=100, help="as when the features were extracted (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="number of answers (%(default)s)")
    parser.add_argument("--output", help="image of where the model looked; default: <image>_answer.jpg")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="detector configuration keys and values")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
