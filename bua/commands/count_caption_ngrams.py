"""Counts the images in whose captions each n-gram occurs. CIDEr-D weights words by these counts when it is a reward.

    bua count-caption-ngrams --folder datasets/coco/captions --splits train val test \\
        --output datasets/coco/captions/frequencies.npz

This counts all of train2014 and val2014, as Anderson's code does. Without such a file, training counts the training
splits alone.
"""

import argparse

from bua.commands.arguments import output_file
from bua.errors import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", required=True, help="folder that prepare-captions wrote")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits of the folder; default: train")
    parser.add_argument("--output", type=output_file, required=True, help="npz file to write")


def run(args: argparse.Namespace) -> None:
    from bua.captioning.cider import DocumentFrequencies
    from bua.captioning.dataset import CaptionDataset

    dataset = CaptionDataset.load(args.folder, *args.splits)
    # The end counts as a word. This adds n-grams with the end, and does not change the counts of the others.
    frequencies = DocumentFrequencies.from_references(dataset.references(end=True))
    make_folder(args.output.parent)
    frequencies.save(args.output)
    print(f"{args.output}: {len(frequencies.hashes)} n-grams of the captions of {frequencies.num_images} images")
