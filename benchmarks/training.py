#!/usr/bin/env python3
"""Measures how fast the detector of configs/vg_r101.yaml is trained: images and steps a second, and the time by part.

Images are drawn in COCO's sizes, with as many boxes, classes and attributes as Visual Genome's have; weights are
random, which does not change the operations. First, steps run as in a training, from image files on; then the parts of
a step run one after the other, and the device is waited for after each. "data" is the time in which a step waits for
its images, which --num-workers processes load ahead.

    python benchmarks/training.py --device cuda --precision bf16 --batch-size 8 --num-workers 8

Keys of the configuration make the network small, for a try on the CPU.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

import bua  # noqa: F401  before torch: it sets how OpenMP waits

# isort: split
import torch
from measuring import COCO_SIZES, check, count_operations, device_name, draw_jpeg, peak, timed, wait_for

from bua.config import load_cfg
from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.detection.mapper import build_mapper
from bua.engine import build_optimizer
from bua.engine.loader import TrainingLoader, aspect_groups
from bua.errors import command
from bua.modeling import build_detector
from bua.precision import set_float32_precision
from bua.vocabulary import Vocabulary

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "vg_r101.yaml"
# Means of Visual Genome's training images: 35 boxes an image, and 0.8 attributes a box.
BOXES, MAX_ATTRIBUTES = 35, 2
FLOAT32_PRECISION = {"fp32": "highest", "tf32": "high", "bf16": "highest"}


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    check(args.device)
    print(f"torch {torch.__version__}, {device_name(args.device)}")
    set_float32_precision(FLOAT32_PRECISION[args.precision])
    torch.manual_seed(0)
    overrides = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", args.device, "SOLVER.IMS_PER_BATCH", str(args.batch_size)]
    cfg = load_cfg(CONFIG, [*overrides, *args.overrides])
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    with tempfile.TemporaryDirectory() as folder:
        loader = make_loader(cfg, make_dataset(cfg, Path(folder), args.images), args.num_workers)
        batches = iter(loader)
        step = Step(detector, optimizer, args.device, args.precision)
        for batch in islice(batches, args.warm_up):
            step(batch)
        measure_rate(args, step, batches)
        measure_parts(args, step, batches)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="%(default)s or cuda")
    parser.add_argument(
        "--precision", choices=FLOAT32_PRECISION, default="fp32", help="bf16 is SOLVER.AMP.ENABLED (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps that are measured, twice (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before (%(default)s)")
    parser.add_argument("--images", type=int, default=200, help="images that are drawn (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that load images (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the configuration and their values")
    return parser.parse_intermixed_args(argv)


class Step:
    """A step of a training: forward, backward and the update, as bua.engine.Trainer computes them."""

    def __init__(self, detector, optimizer: torch.optim.Optimizer, device: str, precision: str):
        self.detector, self.optimizer = detector, optimizer
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        self.forward, self.backward, self.update = self._forward, self._backward, self._update

    def __call__(self, batch: list) -> None:
        loss = self.forward(batch)
        self.backward(loss)
        self.update()

    def _forward(self, batch: list) -> torch.Tensor:
        self.optimizer.zero_grad()
        with self.autocast:
            return sum(self.detector(batch).values())

    @staticmethod
    def _backward(loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


def measure_rate(args, step: Step, batches) -> None:
    batch = next(batches)
    operations = count_operations(lambda: step.backward(step.forward(batch))) / len(batch)
    wait_for(args.device)
    start = time.perf_counter()
    for batch in islice(batches, args.steps):
        step(batch)
    wait_for(args.device)
    rate = args.steps / (time.perf_counter() - start)
    images = rate * args.batch_size
    print(f"\nvg_r101, {args.precision}, {args.batch_size} images a step, {args.num_workers} loading processes")
    print(f"{rate:.2f} steps/s, {images:.2f} images/s")
    share, stated = "", peak(args.device, args.precision)
    if stated:
        share = f", {100 * images * operations / stated:.0f} % of what the data sheet states"
    print(f"{operations / 1e12:.2f} TFLOP an image, {images * operations / 1e12:.1f} TFLOP/s{share}")
    if args.device.startswith("cuda"):
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of memory")


def measure_parts(args, step: Step, batches) -> None:
    spent: dict[str, float] = {}
    device, detector = args.device, step.detector
    detector.backbone.forward = timed(detector.backbone.forward, "forward: backbone", spent, device)
    rpn, heads = detector.proposal_generator, detector.roi_heads
    rpn.forward = timed(rpn.forward, "forward: RPN", spent, device)
    rpn.losses = timed(rpn.losses, "forward: losses of the RPN", spent, device)
    heads.losses = timed(heads.losses, "forward: pooling, res5, heads and their losses", spent, device)
    step.forward = timed(step.forward, "forward", spent, device)
    step.backward = timed(step.backward, "backward", spent, device)
    step.update = timed(step.update, "optimizer", spent, device)
    load = timed(lambda: next(batches), "data", spent, device)
    for _ in range(args.steps):
        step(load())
    parts = [part for part in spent if part.startswith("forward: ")]
    spent["forward: upload, proposals, sampling and the rest"] = spent.pop("forward") - sum(map(spent.get, parts))
    print(f"\n{'one after the other':50}{'ms a step':>12}{'share':>8}")
    whole = sum(spent.values())
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{part:50}{1e3 * seconds / args.steps:12.1f}{100 * seconds / whole:7.0f}%")


def make_dataset(cfg, folder: Path, number: int) -> DetectionDataset:
    """Draws ``number`` images with annotations."""
    rng = np.random.default_rng(0)
    num_classes, num_attributes = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES
    images = []
    for i in range(number):
        height, width = COCO_SIZES[i % len(COCO_SIZES)]
        (folder / f"{i}.jpg").write_bytes(draw_jpeg((height, width), i))
        sides = np.exp(rng.uniform(np.log(20), np.log(300), (BOXES, 2))).clip(max=[width - 2, height - 2])
        corners = rng.random((BOXES, 2)) * ([width - 1, height - 1] - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1).round().astype(int)
        attributes = [
            rng.choice(num_attributes, rng.integers(0, MAX_ATTRIBUTES + 1), replace=False).tolist()
            for _ in range(BOXES)
        ]
        classes = rng.integers(0, num_classes, BOXES).tolist()
        images.append(ImageAnnotations(i + 1, f"{i}.jpg", width, height, boxes, classes, attributes))
    objects = Vocabulary(f"thing {i}" for i in range(num_classes))
    write_annotations(folder / "train.json", images, objects, Vocabulary(f"kind {i}" for i in range(num_attributes)))
    return DetectionDataset(folder / "train.json", folder)


def make_loader(cfg, dataset: DetectionDataset, num_workers: int) -> TrainingLoader:
    return TrainingLoader(
        dataset,
        build_mapper(cfg, dataset.objects, dataset.attribute_names),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=0,
        groups=aspect_groups(dataset.sizes) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        num_workers=num_workers,
    )


if __name__ == "__main__":
    sys.exit(main())
