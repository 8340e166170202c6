#!/usr/bin/env python3
"""Measures the time of a training step of visual question answering, and the share of it that is spent on waiting for
features.

    benchmarks/vqa.py                                a table for the processor of this machine
    benchmarks/vqa.py --device cuda --on-device --bf16 --records 120000 --steps 200
                                                     epochs of VQA v2's train on a GPU, with all features in its memory

Features are random, with a number of boxes per image between --min-boxes and --max-boxes, and are written once in the
flat float16 format (--store, which a second run uses again). Questions are about random images, as in training. Models
have their real sizes, with 19,901 words and 3,129 answers. All numbers are of one run: the step of the model on batches
on the device, the loader alone, and both together, as in training. "waits" is the share of this time in which the
processor waits for the loader's next batch; "epoch" is the time of 443,757 questions, without validation.
"""

import argparse
import resource
import sys

import numpy as np
import torch
from task_steps import DIM, add_options, measure, open_store, print_header
from torch import Tensor, nn

from bua.errors import command
from bua.tasks.region_batches import RegionReader
from bua.tasks.words import QUESTION_LENGTH, WordVocabulary
from bua.vqa import BAN, UpDown
from bua.vqa.answers import AnswerVocabulary, SoftTargets
from bua.vqa.batches import VqaBatch, VqaLoader
from bua.vqa.dataset import VqaDataset
from bua.vqa.training import vqa_loss

WORDS, ANSWERS = 19_901, 3_129
QUESTIONS = 443_757
# Classes and batch sizes of configs/vqa/.
MODELS = {"updown": (UpDown, 512), "ban": (BAN, 256)}


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    reader = open_store(args)
    dataset = draw_questions(reader)
    print_header("questions")
    for name in args.models:
        kind, batch_size = MODELS[name]
        measure_model(kind, args.batch_size or batch_size, dataset, reader, args)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, mapped files included")


def measure_model(
    kind: type[UpDown] | type[BAN], size: int, dataset: VqaDataset, reader: RegionReader, args: argparse.Namespace
) -> None:
    model = kind(WORDS, ANSWERS, feature_dim=DIM).to(args.device)
    loader = VqaLoader(
        dataset,
        reader,
        size,
        seed=0,
        word_padding=model.word_padding,
        threads=args.threads,
        device=next(model.parameters()).device,
    )
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    measure(kind.__name__, model, optimizer, loader, loss_of, args, items=size, epoch=QUESTIONS, clip=0.25)


def loss_of(model: nn.Module, batch: VqaBatch) -> Tensor:
    return vqa_loss(model, batch)[0]


def draw_questions(reader: RegionReader) -> VqaDataset:
    """Returns four random questions of 3 to 12 words per image, with 3 answers each."""
    images = len(reader.stores[0])
    count = 4 * images
    rng = np.random.default_rng(0)
    words = rng.integers(0, WORDS, (count, QUESTION_LENGTH), dtype=np.int32)
    words[np.arange(QUESTION_LENGTH) >= rng.integers(3, 13, (count, 1))] = WORDS
    labels = rng.integers(0, ANSWERS, 3 * count, dtype=np.int32)
    targets = SoftTargets(np.arange(count + 1) * 3, labels, np.full(3 * count, 0.6, np.float32))
    vocabularies = (
        WordVocabulary([f"w{i}" for i in range(WORDS)]),
        AnswerVocabulary([f"a{i}" for i in range(ANSWERS)]),
    )
    return VqaDataset("drawn", np.arange(count), rng.integers(0, images, count), words, targets, *vocabularies)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, store="/tmp/bua_vqa_features", device="cpu")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch-size", type=int, help="questions per step; default: as in configs/vqa/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
