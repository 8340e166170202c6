"""Finds the phrases of a sentence in an image, and draws the box of each phrase in a separate colour.

    bua ground shapes.jpg --sentence "a star above a red circle"
    bua ground cat.jpg --sentence "a man in a hat holds a dog" \\
        --detector output/vg_r101/model_final.pth --grounding output/grounding/ban/model_best.pth

If other phrases are found than you mean, mark them with brackets: "[a man] in [a hat] holds [a dog]". Without
--grounding and --detector, the models that come with bua are used. They know only the drawn images of Shapes.
"""

import argparse
import logging
from pathlib import Path

from bua.commands.arguments import add_image_options, image_files, load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    parser.add_argument("--sentence", required=True, help="sentence about the image; its phrases may be in brackets")
    parser.add_argument(
        "--grounding", help="checkpoint that `bua train-grounding` wrote; default: the one that comes with bua"
    )
    parser.add_argument("--output", help="file for the drawing; default: <image>_grounded.jpg")


def run(args: argparse.Namespace) -> None:
    from bua.grounding.from_image import ground
    from bua.visualization.draw import check_image_name, save_image

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    (image,) = image_files(args)
    output = args.output or f"{Path(image).stem}_grounded.jpg"
    check_image_name(output)
    loaded = load_pipeline("phrase-grounding", args.grounding, args)
    found = ground(image, args.sentence, detector=loaded.detector, grounding=loaded.model)
    for phrase in found.phrases:
        corners = ", ".join(f"{corner:.0f}" for corner in phrase.box)
        print(f"{phrase.scores[phrase.region]:6.1%}  {phrase.text} -> [{corners}]")
    save_image(output, found.drawing)
    print(f"the boxes: {output}")
