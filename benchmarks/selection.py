#!/usr/bin/env python3
"""Measures how long the selection of regions takes on one core, compared with a loop over the classes with
torchvision's nms.

Each image has 300 regions in clusters, as a region proposal network gives them, and 1,600 classes after a softmax, with
many, some or few confident regions. In the worst case, all probabilities are equal.
"""

import argparse
import time

import torch
from torchvision.ops import nms

from bua.extraction import select_regions

REGIONS, CLASSES = 300, 1600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20, help="number of runs, whose median is printed (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    boxes = make_boxes()
    print(f"{REGIONS} regions, {CLASSES} classes, {torch.get_num_threads()} thread, median milliseconds")
    print(f"{'confident regions':<20}{'boxes':>9}{'loop over classes':>20}{'select_regions':>17}{'ratio':>8}")
    for name, probs in make_probs().items():
        for limits in ((10, 100), (36, 36)):
            loop, expected = measure(class_by_class, max(1, args.repeat // 5), boxes, probs, *limits)
            ours, selected = measure(select, args.repeat, boxes, probs, *limits)
            if not torch.equal(expected, selected):
                raise SystemExit(f"{name}, {limits}: the two selections differ")
            boxes_per_image = f"{limits[0]}-{limits[1]}"
            print(f"{name:<20}{boxes_per_image:>9}{loop * 1e3:>20.1f}{ours * 1e3:>17.2f}{loop / ours:>8.0f}")


def select(boxes, probs, min_boxes, max_boxes):
    return select_regions(boxes, probs, min_boxes=min_boxes, max_boxes=max_boxes, convention="detectron2")


def class_by_class(boxes, probs, min_boxes, max_boxes):
    """The baseline: the original's loop with torchvision's nms."""
    confidences = torch.zeros(len(boxes))
    for scores in probs.unbind(1):
        keep = nms(boxes, scores, 0.3)
        confidences[keep] = torch.maximum(confidences[keep], scores[keep])
    confident = torch.nonzero(confidences >= 0.2).flatten()
    if min_boxes <= len(confident) <= max_boxes:
        return confident
    best_first = torch.argsort(confidences, descending=True, stable=True)
    return best_first[: min_boxes if len(confident) < min_boxes else max_boxes]


def measure(function, repeat: int, *arguments):
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2], result


def make_boxes() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    things = torch.rand(40, 4, generator=generator) * torch.tensor([500.0, 350, 200, 200])
    boxes = things[torch.randint(40, (REGIONS,), generator=generator)]
    boxes = boxes + torch.randn(REGIONS, 4, generator=generator) * 10
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clamp(min=16)], dim=1)


def make_probs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(REGIONS, CLASSES + 1, generator=generator)
    peaks = torch.randint(1, CLASSES + 1, (REGIONS,), generator=generator)
    probs = {}
    for name, height in {"many": 11.0, "some": 7.5, "few": 4.5}.items():
        peaked = logits.clone()
        peaked[torch.arange(REGIONS), peaks] += height * torch.rand(REGIONS, generator=generator).sqrt()
        probs[name] = peaked.softmax(dim=1)[:, 1:].contiguous()
    probs["all classes alike"] = torch.full((REGIONS, CLASSES), 1 / (CLASSES + 1))
    return probs


if __name__ == "__main__":
    main()
