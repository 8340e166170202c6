#!/usr/bin/env python3
"""Counts the images in whose captions each n-gram occurs. CIDEr-D weights words by these counts when it is a reward.

    python datasets/count_caption_ngrams.py --folder datasets/coco/captions --splits train val test \\
        --output datasets/coco/captions/frequencies.npz

This counts all of train2014 and val2014, as Anderson's code does. Without such a file, training counts the training
splits alone.
"""

import argparse
import sys
from pathlib import Path

from bua.captioning.cider import DocumentFrequencies
from bua.captioning.dataset import CaptionDataset
from bua.errors import command, make_folder


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    dataset = CaptionDataset.load(args.folder, *args.splits)
    # The end counts as a word. This adds n-grams with the end, and does not change the counts of the others.
    frequencies = DocumentFrequencies.from_references(dataset.references(end=True))
    make_folder(args.output.parent)
    frequencies.save(args.output)
    print(f"{args.output}: {len(frequencies.hashes)} n-grams of the captions of {frequencies.num_images} images")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="folder that datasets/prepare_captions.py wrote")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits of the folder; default: train")
    parser.add_argument("--output", type=Path, required=True, help="npz file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
