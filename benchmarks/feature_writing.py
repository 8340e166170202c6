#!/usr/bin/env python3
"""Measures how many records of features a second one thread writes to TSV files, compared with csv.DictWriter, with
which the authors of the formats write them.

The baseline encodes the arrays as the original does (tools/generate_tsv.py) and hands them to csv.DictWriter. The two
take turns, their files must have the same bytes, and times are those of the thread. For comparison, two limits are
printed: base64 of the features alone, and flat-fp16, which has no text.
"""

import argparse
import base64
import csv
import filecmp
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bua.features import open_writer
from bua.features.tsv import FIELDS
from bua.structures import Regions

DIM = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100, help="number of records in a file (%(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="number of files, of which the fastest is printed (%(default)s)"
    )
    parser.add_argument("--folder", help="where to write the files; by default a temporary folder")
    args = parser.parse_args()
    print(f"records of n x {DIM} a second, one thread, best of {args.repeat} files of {args.records} records")
    print(f"{'n':>4}  {'format':<12}{'csv.DictWriter':>16}{'bua':>10}{'ratio':>8}{'only base64':>13}{'flat-fp16':>11}")
    for count in (36, 100):
        records = make_records(count, args.records)
        for format in FIELDS:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                rates = measure(Path(folder), format, records, args.repeat)
            columns = f"{rates['csv']:>16.0f}{rates['bua']:>10.0f}{rates['bua'] / rates['csv']:>8.1f}"
            print(f"{count:>4}  {format:<12}{columns}{rates['base64']:>13.0f}{rates['flat']:>11.0f}")


def measure(folder: Path, format: str, records: list[Regions], repeat: int) -> dict[str, float]:
    """Returns the best rate of each way to write ``records``, in records a second."""
    best = dict.fromkeys(("csv", "bua", "base64", "flat"), 0.0)
    for number in range(repeat):
        paths = {name: folder / f"{name}{number}" for name in best}
        turns: dict[str, Callable[[], None]] = {
            "csv": lambda paths=paths: write_by_csv(paths["csv"], format, records),
            "bua": lambda paths=paths: write(paths["bua"], format, records),
            "base64": lambda: encode_only(records),
            "flat": lambda paths=paths: write(paths["flat"], "flat-fp16", records),
        }
        for name, turn in turns.items():
            start = time.thread_time()
            turn()
            best[name] = max(best[name], len(records) / (time.thread_time() - start))
        if not filecmp.cmp(paths["csv"], paths["bua"], shallow=False):
            raise SystemExit(f"{format}: the two files differ")
        paths["csv"].unlink()
        paths["bua"].unlink()
    return best


def write(path: Path, format: str, records: list[Regions]) -> None:
    with open_writer(path, format) as writer:
        for regions in records:
            writer.append(regions)
        writer.finish()


def write_by_csv(path: Path, format: str, records: list[Regions]) -> None:
    """The baseline."""
    fields = FIELDS[format]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields, delimiter="\t", extrasaction="ignore")
        for regions in records:
            arrays = {
                "boxes": regions.boxes,
                "features": regions.features,
                "objects_id": regions.object_ids,
                "objects_conf": regions.object_scores,
                "attrs_id": regions.attribute_ids,
                "attrs_conf": regions.attribute_scores,
            }
            row = {field: base64.b64encode(array).decode() for field, array in arrays.items()}
            row |= {fields[0]: regions.image_id, "num_boxes": len(regions)}
            row |= dict.fromkeys(("image_w", "img_w"), regions.width)
            row |= dict.fromkeys(("image_h", "img_h"), regions.height)
            writer.writerow(row)


def encode_only(records: list[Regions]) -> None:
    for regions in records:
        base64.b64encode(regions.features)


def make_records(count: int, number: int) -> list[Regions]:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((count, DIM), np.float32), 0)
    return [
        Regions(
            image_id=image_id,
            width=640,
            height=480,
            boxes=rng.random((count, 4), np.float32) * 400,
            features=features,
            object_ids=rng.integers(0, 1600, count),
            object_scores=rng.random(count, np.float32),
            attribute_ids=rng.integers(0, 400, count),
            attribute_scores=rng.random(count, np.float32),
        )
        for image_id in range(number)
    ]


if __name__ == "__main__":
    main()
