"""Answers a question about an image, and draws the regions that the model attends to.

    bua answer shapes.jpg --question "what color is the star?"
    bua answer cat.jpg --question "what color is the cat?" \\
        --detector output/vg_r101/model_final.pth --vqa output/vqa/updown/model_best.pth

Without --vqa and --detector, the models that come with bua answer. They know only the drawn images of Shapes.
"""

import argparse
from pathlib import Path

from bua.commands.arguments import add_image_options, image_files, load_pipeline
from bua.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    parser.add_argument("--question", required=True, help="question about the image")
    parser.add_argument("--vqa", help="checkpoint that `bua train-vqa` wrote; default: the one that comes with bua")
    parser.add_argument("--top", type=int, default=5, help="number of answers (%(default)s)")
    parser.add_argument("--output", help="file for the drawing; default: <image>_answer.jpg")


def run(args: argparse.Namespace) -> None:
    from bua.visualization.draw import check_image_name, save_image
    from bua.vqa.from_image import answer

    if args.top < 1:
        raise InputError(f"--top is {args.top}; give 1 or more")
    (image,) = image_files(args)
    output = args.output or f"{Path(image).stem}_answer.jpg"
    check_image_name(output)
    loaded = load_pipeline("visual-question-answering", args.vqa, args)
    found = answer(image, args.question, detector=loaded.detector, vqa=loaded.model, top=args.top)
    # The scores do not sum to 1: each is the official accuracy that the model expects of the answer.
    print("expected accuracy  answer")
    for candidate in found.answers:
        print(f"{candidate.score:17.2f}  {candidate.text}")
    save_image(output, found.drawing)
    print(f"the model's attention: {output}")
