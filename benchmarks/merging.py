#!/usr/bin/env python3
"""Measures how fast the parts of an output, which several devices or tasks on Ray write, are merged into it.

    benchmarks/merging.py --images 2000 --parts 8

For each format, the rates in images per second on one core are printed for

    append   reading each image of the parts and appending it to the output (what Ray's shards needed before)
    merge    ``bua.features.parts.merge_part``, which copies the bytes of the parts or renames their files

and the ratio of the second to the first. Each image has 36 regions of 2,048 dimensions. The times include the final
sync to the disk only with --sync.
"""

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bua.features import FeatureWriter, open_features, open_writer
from bua.features.parts import merge_part
from bua.structures import Regions

BOXES, DIM = 36, 2048
FORMATS = ("tsv", "flat", "flat-fp16", "npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=800, help="number of images in all parts (%(default)s)")
    parser.add_argument("--parts", type=int, default=8, help="number of parts (%(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="formats (all)")
    parser.add_argument("--repeat", type=int, default=3, help="number of measurements, of which the best is printed")
    parser.add_argument("--sync", action="store_true", help="sync the output to the disk too")
    parser.add_argument("--folder", help="where to write the files; by default a temporary folder")
    args = parser.parse_args()
    print(f"{args.images} images of {BOXES} x {DIM} in {args.parts} parts; images per second (processor time)")
    print(f"{'':<12}{'append':>20}{'merge':>20}{'ratio':>8}")
    for format in args.formats:
        rates = {}
        for name, way in (("append", append_all), ("merge", merge_part)):
            measured = [measure(way, format, args) for _ in range(args.repeat)]
            rates[name] = max(rate for rate, _ in measured), max(rate for _, rate in measured)
        cells = "".join(f"{wall:>10.0f} ({core:>7.0f})" for wall, core in rates.values())
        print(f"{format:<12}{cells}{rates['merge'][1] / rates['append'][1]:>8.1f}", flush=True)


def append_all(part: Path, writer: FeatureWriter) -> None:
    store = open_features(part)
    for image_id in store:
        writer.append(store[image_id])


def measure(way: Callable[[Path, FeatureWriter], object], format: str, args: argparse.Namespace) -> tuple[float, float]:
    """Returns the rates by the clock and by this process's processor time, in images per second."""
    with written_parts(format, args) as (parts, output), open_writer(output, format) as writer:
        start, used = time.perf_counter(), processor_seconds()
        for part in parts:
            way(part, writer)
        if args.sync:
            writer.sync()
        wall, core = time.perf_counter() - start, processor_seconds() - used
        if len(writer.done) != args.images:
            raise RuntimeError(f"{len(writer.done)} of {args.images} images were merged")
    return args.images / wall, args.images / core


@contextmanager
def written_parts(format: str, args: argparse.Namespace) -> Iterator[tuple[list[Path], Path]]:
    """Yields the paths of parts, which are deleted after the block, and of the output."""
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    features = np.random.default_rng(0).random((BOXES, DIM), np.float32)
    boxes = np.zeros((BOXES, 4), np.float32)
    parts = [folder / f"part{number}" for number in range(args.parts)]
    try:
        for number, part in enumerate(parts):
            with open_writer(part, format) as writer:
                for image_id in range(number, args.images, args.parts):
                    writer.append(Regions(image_id, 640, 480, boxes, features))
        yield parts, folder / "output"
    finally:
        shutil.rmtree(folder)


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
