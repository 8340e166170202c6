"""Captions images, and draws the regions that the model attends to for each word.

    bua caption shapes.jpg
    bua caption cat.jpg dog.jpg --detector output/vg_r101/model_final.pth \\
        --captioner output/captioning/updown_scst/model_best.pth

Several captioners form an ensemble, which predicts each word together. Without --captioner and --detector, the models
that come with bua caption. They know only the drawn images of Shapes.
"""

import argparse
from pathlib import Path

from bua.commands.arguments import add_image_options, image_files, load_pipeline
from bua.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser, several=True)
    parser.add_argument(
        "--captioner",
        nargs="+",
        help="checkpoints that `bua train-caption` wrote; default: the one that comes with bua",
    )
    parser.add_argument("--beam", type=int, help="width of the beam search; default: as in training")
    parser.add_argument("--output", default=".", help="folder for the drawings, <image>_caption.jpg (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from bua.captioning.from_image import caption_all
    from bua.captioning.inference import load_captioner
    from bua.visualization.draw import save_image

    if args.beam is not None and args.beam < 1:
        raise InputError(f"--beam is {args.beam}; give 1 or more")
    images = image_files(args, several=True)
    first, *others = args.captioner or [None]
    loaded = load_pipeline("image-to-text", first, args)
    beam = ["DECODING.BEAM", str(args.beam)] if args.beam is not None else []
    names = [first or loaded.default_model, *others] if beam or others else []
    captioners = [load_captioner(name, str(loaded.detector.device), beam) for name in names] or [loaded.model]
    captioned = caption_all(images, detector=loaded.detector, captioner=captioners)
    for image, found in zip(images, captioned):
        print(f"{image}: {found.captions[0].text}")
        for candidate in found.captions:
            print(f"  {candidate.score:8.2f}  {candidate.text}")
        strip = Path(args.output) / f"{Path(image).stem}_caption.jpg"
        save_image(strip, found.strip)
        print(f"  the model's attention: {strip}")
