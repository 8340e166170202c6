#!/usr/bin/env python3
"""Measures a training step of the captioner, or the time of CIDEr-D.

With --device, it measures the time of a training step with cross-entropy on this device, and the share of it that is
spent on waiting for features:

    benchmarks/captioning.py --device cpu
    benchmarks/captioning.py --device cuda --on-device --bf16 --records 113287 --steps 200

Features are random, as in benchmarks/vqa.py, whose columns the table has too. The model has its real size, with a
vocabulary of 10,010 words. A step has --batch-size images with --captions captions each, of 8 to 14 words; "epoch" is
the time of 566,435 captions, all of Karpathy's training split, without validation.

Without --device, it compares CIDEr-D with pycocoevalcap's implementation, on random sentences with the lengths and word
frequencies of COCO's captions:

    a step's rewards     scores --samples captions of each of --batch images against their references, with given
                         document frequencies: a step of self-critical training. Both have read the references before.
    a whole evaluation   scores one caption of each image of the corpus; the references are read and counted first.

Prints the milliseconds of the best of several runs, and the ratio. Both implementations must give the same scores.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from task_steps import DIM, add_options, measure, open_store, print_header
from torch import Tensor, nn

from bua.captioning.batches import CaptionBatch, CaptionLoader
from bua.captioning.cider import CiderD, DocumentFrequencies
from bua.captioning.dataset import CaptionDataset
from bua.captioning.updown import UpDownCaptioner, caption_loss
from bua.captioning.vocabulary import CaptionVocabulary
from bua.errors import command
from bua.tasks.prepared import offsets_of

WORDS = 10_010
CAPTIONS = 566_435
CAPTIONS_PER_IMAGE = 5


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.device:
        measure_training(args)
    else:
        compare_scores(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training = parser.add_argument_group("with --device")
    add_options(training, store="/tmp/bua_vqa_features", device=None)
    training.add_argument("--batch-size", type=int, default=100, help="images per step (%(default)s)")
    training.add_argument("--captions", type=int, default=1, help="captions per image of a step (%(default)s)")
    scores = parser.add_argument_group("without --device")
    scores.add_argument("--images", type=int, default=5000, help="images of the corpus (%(default)s)")
    scores.add_argument("--references", type=int, default=5, help="references per image (%(default)s)")
    scores.add_argument("--batch", type=int, default=100, help="images of a step (%(default)s)")
    scores.add_argument("--samples", type=int, default=5, help="captions per image of a step (%(default)s)")
    scores.add_argument("--repeat", type=int, default=5, help="number of runs (%(default)s)")
    return parser.parse_args(argv)


def measure_training(args: argparse.Namespace) -> None:
    """Prints the table of a training step."""
    reader = open_store(args)
    dataset = draw_captions(len(reader.stores[0]))
    model = UpDownCaptioner(WORDS, feature_dim=DIM).to(args.device)
    loader = CaptionLoader(
        dataset,
        reader,
        args.batch_size,
        seed=0,
        captions_per_image=args.captions,
        threads=args.threads,
        device=next(model.parameters()).device,
    )
    print_header("captions")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.0005)
    items = args.batch_size * min(args.captions, CAPTIONS_PER_IMAGE)
    measure("Up-Down", model, optimizer, loader, cross_entropy, args, items=items, epoch=CAPTIONS, clip=10.0)


def cross_entropy(model: nn.Module, batch: CaptionBatch) -> Tensor:
    return caption_loss(model(batch.features, batch.mask, batch.tokens), batch.targets, batch.target_mask)


def draw_captions(images: int) -> CaptionDataset:
    """Returns five random captions of 8 to 14 words per image."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 15, images * CAPTIONS_PER_IMAGE)
    words = rng.integers(2, WORDS, lengths.sum(), dtype=np.int32)
    vocabulary = CaptionVocabulary([".", "<unk>", *(f"w{i}" for i in range(WORDS - 2))])
    offsets = offsets_of(np.full(images, CAPTIONS_PER_IMAGE)), offsets_of(lengths)
    return CaptionDataset("drawn", np.arange(images), *offsets, words, vocabulary)


def compare_scores(args: argparse.Namespace) -> None:
    """Prints the table of CIDEr-D."""
    rng = np.random.default_rng(0)
    references = {
        image_id: [sentence(rng) for _ in range(args.references)] for image_id in rng.permutation(args.images).tolist()
    }
    print(f"{'milliseconds':<24}{'pycocoevalcap':>16}{'bua':>12}{'times as fast':>16}")
    for name, theirs, ours in (
        ("a step's rewards", *step(references, args.batch, args.samples, rng)),
        ("a whole evaluation", *evaluation(references, rng)),
    ):
        (slow, expected), (fast, scores) = best_of(theirs, args.repeat), best_of(ours, args.repeat)
        if not np.allclose(scores, expected, rtol=0, atol=1e-6):
            raise SystemExit(f"{name}: the scores differ by {np.abs(scores - expected).max()}")
        print(f"{name:<24}{slow:>16.1f}{fast:>12.1f}{slow / fast:>16.1f}")


def sentence(rng: np.random.Generator) -> list[str]:
    """Returns about 10 words out of about 10,000."""
    words = np.minimum(rng.zipf(1.35, rng.integers(8, 14)), 10_000)
    return [f"w{word}" for word in words.tolist()]


def variation(caption: list[str], rng: np.random.Generator) -> list[str]:
    """Returns a caption that shares some words with another one, as captions of a model do."""
    return [mine if rng.random() < 0.6 else other for mine, other in zip(caption, sentence(rng))]


def step(
    references: dict[int, list[list[str]]], batch: int, samples: int, rng: np.random.Generator
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    # An extra package, which the steps of training do not need.
    from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

    chosen = np.repeat(rng.choice(list(references), batch, replace=False), samples).tolist()
    candidates = [variation(references[image_id][0], rng) for image_id in chosen]
    scorer = CiderD(references, DocumentFrequencies.from_references(references))

    class KnownCorpus(CiderScorer):
        # The logarithm of the size of the corpus. The original always computes it from the images that it scores.
        ref_len = property(lambda self: math.log(len(references)), lambda self, value: None)

    def cook(caption: list[str]) -> str:
        return " ".join(caption)

    cooked = {image_id: cook_refs(map(cook, captions)) for image_id, captions in references.items()}
    original = KnownCorpus()
    original.crefs = list(cooked.values())
    original.compute_doc_freq()

    def theirs() -> np.ndarray:
        original.crefs = [cooked[image_id] for image_id in chosen]
        original.ctest = [cook_test(cook(caption)) for caption in candidates]
        return np.array(original.compute_cider())

    return theirs, lambda: scorer.score(candidates, chosen)


def evaluation(
    references: dict[int, list[list[str]]], rng: np.random.Generator
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    from pycocoevalcap.cider.cider import Cider

    candidates = {image_id: variation(captions[0], rng) for image_id, captions in references.items()}
    joined = {image_id: [" ".join(caption) for caption in captions] for image_id, captions in references.items()}
    results = {image_id: [" ".join(caption)] for image_id, caption in candidates.items()}
    return (
        lambda: Cider().compute_score(joined, results)[1],
        lambda: CiderD(references).score(list(candidates.values()), list(candidates)),
    )


def best_of(run: Callable[[], np.ndarray], repeat: int) -> tuple[float, np.ndarray]:
    """Returns the milliseconds of the fastest run, and the result of ``run``."""
    best = math.inf
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return 1000 * best, result


if __name__ == "__main__":
    sys.exit(main())
