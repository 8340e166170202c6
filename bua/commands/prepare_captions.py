"""Prepares captions for training: a vocabulary, captions as ids of words, and references for computing scores.

    bua prepare-captions --karpathy datasets/coco/dataset_coco.json --output datasets/coco/captions
    bua prepare-captions --coco captions_train2014.json captions_val2014.json \\
        --split train karpathy_train_images.txt --split val karpathy_val_images.txt \\
        --split test karpathy_test_images.txt --output datasets/coco/captions
    bua prepare-captions --regions datasets/visual_genome/region_descriptions.json \\
        --split train datasets/visual_genome/splits/train.txt --split val datasets/visual_genome/splits/val.txt \\
        --tokenizer wordpiece --vocabulary vocab.txt --output datasets/visual_genome/phrases

The second command needs no file of Karpathy; its lists are in data/coco_splits of peteanderson80/Up-Down-Captioner. The
third command gives the captions of the GRU variant (ChanningPing); vocab.txt is that of bert-base-uncased.
"""

import argparse
import logging
from pathlib import Path

from bua.errors import InputError
from bua.options import PHRASES_PER_CAPTION, TOKENIZERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--karpathy", type=Path, help="dataset_coco.json, or dataset_flickr30k.json")
    source.add_argument("--coco", type=Path, nargs="+", help="COCO's official files, captions_*.json")
    source.add_argument("--regions", type=Path, help="Visual Genome's region_descriptions.json")
    parser.add_argument(
        "--split",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "LIST"),
        help="name of a split and the list of its images, for --coco and --regions; give it once per split",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        default=TOKENIZERS[0],
        help="Anderson's tokeniser, Karpathy's, or BERT's word pieces; default: %(default)s",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        help="file with one word per line, such as train_vocab.txt, instead of counting words",
    )
    parser.add_argument(
        "--vocabulary-splits", nargs="+", help="splits whose words are counted; default: train; all for karpathy"
    )
    parser.add_argument(
        "--min-count", type=int, help="number of times that a word must occur; default: 5 for anderson, 6 for karpathy"
    )
    parser.add_argument(
        "--phrases",
        type=int,
        default=PHRASES_PER_CAPTION,
        help="number of phrases that make a caption, for --regions; default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    from bua.captioning.dataset import prepare_captions
    from bua.captioning.official import load_coco, load_karpathy, load_region_phrases

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    splits = dict(args.split)
    if args.karpathy and splits:
        raise InputError(
            "--split: only for --coco and --regions; leave it out, since Karpathy's file has its own splits"
        )
    if not args.karpathy and not splits:
        raise InputError("--split: missing; name a list of images for each split, such as: --split train train.txt")
    if args.karpathy:
        captions = load_karpathy(args.karpathy)
    elif args.coco:
        captions = load_coco(args.coco, splits)
    else:
        captions = load_region_phrases(args.regions, splits, phrases=args.phrases)
    datasets = prepare_captions(
        captions,
        args.output,
        tokenizer=args.tokenizer,
        vocabulary=args.vocabulary,
        vocabulary_splits=args.vocabulary_splits,
        min_count=args.min_count,
    )
    print(f"{len(next(iter(datasets.values())).vocabulary)} words -> {args.output}")
    for split, dataset in datasets.items():
        print(f"{split:6} {len(dataset):7} images, {dataset.num_captions:7} captions")
