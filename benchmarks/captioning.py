#!/usr/bin/env python3
"""Measures the time of CIDEr-D and of pycocoevalcap's implementation, on random sentences with the lengths and word
frequencies of COCO's captions.

    a step's rewards     scores --samples captions of each of --batch images against their references, with given
                         document frequencies: a step of self-critical training. Both have read the references before.
    a whole evaluation   scores one caption of each image of the corpus; the references are read and counted first.

Prints the milliseconds of the best of several runs, and the ratio. Both implementations must give the same scores.
"""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from bua.captioning.cider import CiderD, DocumentFrequencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images of the corpus (%(default)s)")
    parser.add_argument("--references", type=int, default=5, help="references per image (%(default)s)")
    parser.add_argument("--batch", type=int, default=100, help="images of a step (%(default)s)")
    parser.add_argument("--samples", type=int, default=5, help="captions per image of a step (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="number of runs (%(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    references = {
        image_id: [sentence(rng) for _ in range(args.references)] for image_id in rng.permutation(args.images).tolist()
    }
    print(f"{'milliseconds':<24}{'pycocoevalcap':>16}{'bua':>12}{'times as fast':>16}")
    for name, theirs, ours in (
        ("a step's rewards", *step(references, args.batch, args.samples, rng)),
        ("a whole evaluation", *evaluation(references, rng)),
    ):
        (slow, expected), (fast, scores) = measure(theirs, args.repeat), measure(ours, args.repeat)
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
    candidates = {image_id: variation(captions[0], rng) for image_id, captions in references.items()}
    joined = {image_id: [" ".join(caption) for caption in captions] for image_id, captions in references.items()}
    results = {image_id: [" ".join(caption)] for image_id, caption in candidates.items()}
    return (
        lambda: Cider().compute_score(joined, results)[1],
        lambda: CiderD(references).score(list(candidates.values()), list(candidates)),
    )


def measure(run: Callable[[], np.ndarray], repeat: int) -> tuple[float, np.ndarray]:
    """Returns the milliseconds of the fastest run, and the result of ``run``."""
    best = math.inf
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return 1000 * best, result


if __name__ == "__main__":
    main()
