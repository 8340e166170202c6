#!/usr/bin/env python3
"""Counts in how many images' captions each n-gram occurs: what CIDEr-D as a reward weighs words by.

    python datasets/count_caption_ngrams.py --folder datasets/coco/captions --splits train val test \\
        --output datasets/coco/captions/frequencies.npz

Anderson counts all of train2014 and val2014, as here; without such a file the training splits alone are counted.
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
    # With the end as a word: the n-grams that have none are counted all the same.
    frequencies = DocumentFrequencies.from_references(dataset.references(end=True))
    make_folder(args.output.parent)
    frequencies.save(args.output)
    print(f"{args.output}: {len(frequencies.hashes)} n-grams of the captions of {frequencies.num_images} images")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="what datasets/prepare_captions.py wrote")
    parser.add_argument("--splits", nargs="+", default=["train"], help="of it; default: train")
    parser.add_argument("--output", type=Path, required=True, help="npz file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
