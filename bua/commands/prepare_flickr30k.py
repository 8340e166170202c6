"""Prepares Flickr30k Entities, or a data set in the same format, for training: a vocabulary, and sentences, phrases and
boxes as arrays.

    bua prepare-flickr30k --root datasets/flickr30k_entities --output datasets/flickr30k/prepared \\
        --glove datasets/glove.6B.300d.txt
    bua prepare-flickr30k --root datasets/shapes/flickr30k_entities --output datasets/shapes/flickr30k

The root folder has the files of https://github.com/BryanPlummer/flickr30k_entities: Annotations/<id>.xml and
Sentences/<id>.txt, which are in annotations.zip, and train.txt, val.txt and test.txt.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("datasets/flickr30k_entities"),
        help="folder of the official files; default: %(default)s",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("datasets/flickr30k/prepared"), help="folder to write; default: %(default)s"
    )
    parser.add_argument(
        "--zero-based",
        action="store_true",
        help="subtract 1 from the corners of the boxes, as the data set's own program does; by default they stay as in "
        "the files, where pixels count from 1, as in jnhwkim/ban-vqa",
    )
    parser.add_argument(
        "--authors-positions",
        action="store_true",
        help="find the places of phrases as jnhwkim/ban-vqa does, which counts commas as words, and takes the first "
        "place of a phrase that occurs twice",
    )
    parser.add_argument(
        "--vocabulary", type=Path, help="JSON list of words in the order of their ids, to use ban-vqa's checkpoints"
    )
    parser.add_argument("--glove", type=Path, help="text file of word vectors, such as glove.6B.300d.txt")
    parser.add_argument("--glove-dim", type=int, default=300, help="dimension of its vectors; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    from bua.grounding.dataset import prepare_flickr30k

    datasets, counts = prepare_flickr30k(**vars(args))
    print(f"{len(datasets['train'].vocabulary)} words -> {args.output}")
    for split, count in counts.items():
        left_out = ", ".join(f"{number} {kind}" for kind, number in count["phrases_left_out"].items()) or "none"
        print(
            f"{split:6} {count['phrases']:7} phrases in {count['sentences']:6} sentences; left out: phrases without a "
            f"box ({left_out}), and {count['sentences_left_out']} sentences without other phrases"
        )
