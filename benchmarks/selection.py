#!/usr/bin/env python3
"""Measures how long the selection of regions takes on one core, compared with a loop over the classes with
torchvision's nms.

Each image has 300 regions in clusters, as a region proposal network gives them, and 1,600 classes after a softmax:

    many, some, few       so many confident regions, each with one class, over classes at random
    trained               one to five classes above 0.01 per region, which the regions of a cluster share
    untrained, flat       scores that differ little
    untrained, one class  the same, with the same best class in nearly all regions
    all classes alike     all probabilities are equal, so that every pair of a region and a class counts
    classes at random     probabilities that are not from a softmax: every region has many classes near 1

"floor" is what no selection can avoid: the overlaps of the boxes, and one comparison of all probabilities. Times are
those of the thread, which do not contain what other programs take of the core.
"""

import argparse
import time

import numpy as np
import torch
from torchvision.ops import nms

from bua.extraction.class_suppression import overlap_bits
from bua.extraction.select import choose_rows

REGIONS, CLASSES = 300, 1600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, help="number of runs, whose median is printed (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    boxes, things = make_boxes()
    print(f"{REGIONS} regions, {CLASSES} classes, one thread, median and worst milliseconds")
    print(f"{'scores':<22}{'boxes':>9}{'loop over classes':>19}{'choose_rows':>13}{'worst':>8}{'floor':>8}{'ratio':>8}")
    for name, probs in make_probs(things).items():
        for limits in ((10, 100), (36, 36)):
            loop, _, expected = measure(class_by_class, max(1, args.repeat // 10), boxes, probs, *limits)
            ours, worst, selected = measure(select, args.repeat, boxes, probs, *limits)
            floor, _, _ = measure(read_once, args.repeat, boxes, probs)
            if not np.array_equal(expected, selected):
                raise SystemExit(f"{name}, {limits}: the two selections differ")
            numbers = f"{loop * 1e3:>19.1f}{ours * 1e3:>13.2f}{worst * 1e3:>8.2f}{floor * 1e3:>8.2f}{loop / ours:>8.0f}"
            print(f"{name:<22}{f'{limits[0]}-{limits[1]}':>9}{numbers}")


def select(boxes, probs, min_boxes, max_boxes):
    return choose_rows(boxes, probs, min_boxes=min_boxes, max_boxes=max_boxes, convention="detectron2")


def class_by_class(boxes, probs, min_boxes, max_boxes):
    """The baseline: the original's loop with torchvision's nms."""
    boxes, probs = torch.from_numpy(boxes), torch.from_numpy(probs)
    confidences = torch.zeros(len(boxes))
    for scores in probs.unbind(1):
        keep = nms(boxes, scores, 0.3)
        confidences[keep] = torch.maximum(confidences[keep], scores[keep])
    confident = torch.nonzero(confidences >= 0.2).flatten()
    if min_boxes <= len(confident) <= max_boxes:
        return confident.numpy()
    best_first = torch.argsort(confidences, descending=True, stable=True)
    return best_first[: min_boxes if len(confident) < min_boxes else max_boxes].numpy()


def read_once(boxes, probs):
    return overlap_bits(boxes, 0.3, "detectron2"), np.flatnonzero(probs >= 0.2)


def measure(function, repeat: int, *arguments):
    """Returns the median and the worst time in seconds, and the result."""
    seconds = []
    for _ in range(repeat):
        start = time.thread_time()
        result = function(*arguments)
        seconds.append(time.thread_time() - start)
    seconds.sort()
    return seconds[len(seconds) // 2], seconds[-1], result


def make_boxes() -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes [R, 4], and the number [R] of the cluster that each belongs to."""
    generator = torch.Generator().manual_seed(0)
    things = torch.rand(40, 4, generator=generator) * torch.tensor([500.0, 350, 200, 200])
    thing_of = torch.randint(40, (REGIONS,), generator=generator)
    boxes = things[thing_of] + torch.randn(REGIONS, 4, generator=generator) * 10
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clamp(min=16)], dim=1)
    return boxes.numpy(), thing_of.numpy()


def make_probs(thing_of: np.ndarray) -> dict[str, np.ndarray]:
    """Returns probabilities [R, C] by the name of the case."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(REGIONS, CLASSES + 1, generator=generator)
    peaks = torch.randint(1, CLASSES + 1, (REGIONS,), generator=generator)
    probs = {}
    for name, height in {"many": 11.0, "some": 7.5, "few": 4.5}.items():
        peaked = logits.clone()
        peaked[torch.arange(REGIONS), peaks] += height * torch.rand(REGIONS, generator=generator).sqrt()
        probs[name] = after_softmax(peaked)
    classes_of_thing = torch.randint(1, CLASSES + 1, (40, 5), generator=generator)
    heights = 4 + 4 * torch.rand(REGIONS, 5, generator=generator)
    trained = logits.scatter_add(1, classes_of_thing[torch.from_numpy(thing_of)], heights)
    # As for the background of a trained detector, which most proposals are.
    trained[:, 0] += 10 * torch.rand(REGIONS, generator=generator)
    probs["trained"] = after_softmax(trained)
    probs["untrained, flat"] = after_softmax(0.1 * logits)
    of_classes = 0.3 * torch.randn(CLASSES + 1, generator=generator)
    probs["untrained, one class"] = after_softmax(of_classes + 0.05 * logits)
    probs["all classes alike"] = np.full((REGIONS, CLASSES), 1 / (CLASSES + 1), np.float32)
    probs["classes at random"] = torch.rand(REGIONS, CLASSES, generator=generator).numpy()
    return probs


def after_softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.softmax(dim=1)[:, 1:].contiguous().numpy()


if __name__ == "__main__":
    main()
