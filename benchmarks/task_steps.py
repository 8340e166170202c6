"""What the benchmarks of the tasks share: random features, options, and the time of training steps."""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from bua.config import check_device
from bua.errors import InputError
from bua.features import open_writer
from bua.precision import set_float32_precision
from bua.structures import Regions
from bua.tasks.region_batches import RegionBatch, RegionLoader, RegionReader
from bua.tasks.resident_regions import on_device

DIM = 2048
WARM_UP = 3
# Batches in memory that the step of the model alone is measured with.
IN_MEMORY = 4


def add_options(parser: argparse.ArgumentParser, *, store: str, device: str | None) -> None:
    """Adds the options that both benchmarks have; ``store`` and ``device`` are defaults."""
    parser.add_argument("--device", default=device, help="cpu, cuda, ... (%(default)s)")
    parser.add_argument(
        "--on-device", action="store_true", help="keep all features in the device's memory, as DATA.ON_DEVICE"
    )
    parser.add_argument("--bf16", action="store_true", help="train with autocast to bfloat16, as SOLVER.AMP.ENABLED")
    parser.add_argument("--tf32", action="store_true", help="allow TF32, as FLOAT32_PRECISION high")
    parser.add_argument("--store", type=Path, default=Path(store), help="folder (%(default)s)")
    parser.add_argument("--records", type=int, default=8000, help="number of images in a new store (%(default)s)")
    parser.add_argument("--min-boxes", type=int, default=36, help="boxes per image in a new store (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=36, help="boxes per image in a new store (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="number of threads that read (%(default)s)")


def open_store(args: argparse.Namespace) -> RegionReader:
    """Returns the reader of the features that ``args`` name, which are written if there are none, and says its size.

    Raises:
        InputError: This machine does not have the device, the features do not fit on it, or a number is below 1.
    """
    check_device(args.device, "--device")
    for name in ("records", "steps", "max_boxes"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be 1 or more")
    set_float32_precision("high" if args.tf32 else "highest")
    if not args.store.exists():
        write_store(args.store, args.records, args.min_boxes, args.max_boxes)
    device = torch.device(args.device)
    reader = RegionReader.open([args.store], pin_memory=device.type == "cuda")
    start = time.perf_counter()
    ids = np.arange(len(reader.stores[0]))
    reader = on_device(reader, ids, device, args.on_device, threads=args.threads)
    size = sum(path.stat().st_size for path in args.store.rglob("*"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    kept = f"on the device, loaded in {time.perf_counter() - start:.1f} s" if args.on_device else "read from files"
    print(f"{name}; {args.store}: {len(ids)} images, {size / 2**30:.1f} GiB, {kept}")
    return reader


def print_header(item: str) -> None:
    columns = ("batch", "model ms", "loader ms", "both ms", "waits", "steps/s", f"{item}/s", "epoch s")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))


def measure(
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: RegionLoader,
    loss: Callable[[nn.Module, RegionBatch], Tensor],
    args: argparse.Namespace,
    *,
    items: int,
    epoch: int,
    clip: float,
) -> None:
    """Prints the line of a model in the table.

    Args:
        items: Number of items of a step.
        epoch: Number of items of an epoch.
        clip: Norm that the gradients are clipped to.
    """
    device = next(model.parameters()).device

    def step(batch: RegionBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    batches = iter(loader)
    in_memory = list(islice(batches, IN_MEMORY))
    alone, _ = seconds(step, (in_memory[i % IN_MEMORY] for i in range(WARM_UP + args.steps)), device)
    loading, _ = seconds(lambda batch: None, islice(batches, WARM_UP + args.steps), device)
    together, waiting = seconds(step, islice(batches, WARM_UP + args.steps), device)
    print(
        f"{name:10}{items:12}{1e3 * alone:12.1f}{1e3 * loading:12.1f}{1e3 * together:12.1f}{waiting / together:12.1%}"
        f"{1 / together:12.2f}{items / together:12,.0f}{epoch / items * together:12.1f}"
    )


def seconds(
    work: Callable[[RegionBatch], None], batches: Iterator[RegionBatch], device: torch.device
) -> tuple[float, float]:
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
