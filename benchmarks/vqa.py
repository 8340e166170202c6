#!/usr/bin/env python3
"""Measures the time of a training step of visual question answering, and the share of it that is spent on waiting for
features.

    benchmarks/vqa.py                                               a table for the processor of this machine
    benchmarks/vqa.py --device cuda --records 120000 --steps 200    for one H200: epochs of VQA v2's train

Features are random, with a number of boxes per image between --min-boxes and --max-boxes, and are written once in the
flat float16 format (--store, which a second run uses again). Questions are about random images, as in training. Models
have their real sizes, with 19,901 words and 3,129 answers. All numbers are of one run: the step of the model on batches
in memory, the loader alone, and both together, as in training. "waits" is the share of this time in which the step
waits for its batch; "epoch" is the time of 443,757 questions, without validation.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import trange

from bua.features import open_writer
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader
from bua.tasks.words import QUESTION_LENGTH, WordVocabulary
from bua.vqa import BAN, UpDown
from bua.vqa.answers import AnswerVocabulary, SoftTargets
from bua.vqa.batches import VqaBatch, VqaLoader
from bua.vqa.dataset import VqaDataset
from bua.vqa.training import vqa_loss

WORDS, ANSWERS, DIM = 19_901, 3_129, 2048
QUESTIONS = 443_757
WARM_UP = 3


def main() -> None:
    args = parse()
    if not args.store.exists():
        write_store(args.store, args.records, args.min_boxes, args.max_boxes)
    device = torch.device(args.device)
    reader = RegionReader.open([args.store], pin_memory=device.type == "cuda")
    dataset = draw_questions(len(reader.stores[0]), args.records * 4)
    size = sum(path.stat().st_size for path in args.store.rglob("*"))
    print(f"{args.store}: {len(reader.stores[0])} images, {size / 2**30:.1f} GiB; batches of {args.batch_size}")
    print(f"{'':8}{'model ms':>10}{'loader ms':>11}{'both ms':>9}{'waits':>8}{'questions/s':>13}{'epoch s':>9}")
    for kind in (UpDown, BAN):
        if kind.__name__.lower() in args.models:
            measure(kind(WORDS, ANSWERS, feature_dim=DIM).to(device), dataset, reader, args)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, mapped files included")


def measure(model: nn.Module, dataset: VqaDataset, reader: RegionReader, args: argparse.Namespace) -> None:
    """Prints the line of a model in the table."""
    device = next(model.parameters()).device
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    loader = VqaLoader(dataset, reader, args.batch_size, seed=0, word_padding=model.word_padding, threads=args.threads)

    def step(batch: VqaBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = vqa_loss(model, batch.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    batches = iter(loader)
    in_memory = list(islice(batches, min(args.steps, 8)))
    alone, _ = seconds(step, (in_memory[i % len(in_memory)] for i in range(WARM_UP + args.steps)), device)
    loading, _ = seconds(lambda batch: None, islice(batches, WARM_UP + args.steps), device)
    together, waiting = seconds(step, islice(batches, WARM_UP + args.steps), device)
    figures = f"{1e3 * alone:10.1f}{1e3 * loading:11.1f}{1e3 * together:9.1f}{waiting / together:8.1%}"
    print(
        f"{type(model).__name__:8}{figures}{args.batch_size / together:13,.0f}"
        f"{QUESTIONS / args.batch_size * together:9.1f}"
    )


def seconds(work: Callable, batches: Iterator[VqaBatch], device: torch.device) -> tuple[float, float]:
    """Returns the mean time per batch, and the mean time of waiting for it, without the first ``WARM_UP`` batches."""
    start = time.perf_counter()
    waiting, count = 0.0, -WARM_UP
    asked = start
    for batch in batches:
        waiting += time.perf_counter() - asked
        work(batch)
        count += 1
        if count == 0:
            finish(device)
            start, waiting = time.perf_counter(), 0.0
        asked = time.perf_counter()
    finish(device)
    return (time.perf_counter() - start) / count, waiting / count


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_store(path: Path, records: int, min_boxes: int, max_boxes: int) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((2 * max_boxes, DIM), np.float32)
    with open_writer(path, "flat-fp16") as writer:
        for image_id in trange(records, unit="image", desc=str(path)):
            count = int(rng.integers(min_boxes, max_boxes + 1))
            corners = rng.random((count, 2)) * 300
            boxes = np.concatenate([corners, corners + 100], axis=1).astype(np.float32)
            first = int(rng.integers(max_boxes))
            writer.append(Regions(image_id, 640, 480, boxes, drawn[first : first + count]))
        writer.finish()


def draw_questions(images: int, count: int) -> VqaDataset:
    """Returns random questions of 3 to 12 words with 3 answers each."""
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("/tmp/bua_vqa_features"), help="folder (%(default)s)")
    parser.add_argument("--records", type=int, default=8000, help="number of images in a new store (%(default)s)")
    parser.add_argument("--min-boxes", type=int, default=36, help="boxes per image in a new store (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=36, help="boxes per image in a new store (%(default)s)")
    parser.add_argument("--models", nargs="+", default=["updown", "ban"], choices=["updown", "ban"])
    parser.add_argument("--batch-size", type=int, default=256, help="questions per step (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads that read (%(default)s)")
    parser.add_argument("--bf16", action="store_true", help="train with autocast to bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
