#!/usr/bin/env python3
"""Measures how long it takes to read the features of one image by its id, in random order, from files in memory.

The features of each image, 36 x 2048 in float16, are stored in a flat folder and in a contiguous HDF5 file, and in
float32 in the two other common formats, TSV and npz. For each format, three times are printed in microseconds per
image, with the ratio to the time of the flat format:

    array        until the program has the array, which the flat format maps and the others copy
    touched      until it has also read one number from each page of 4 KB
    all bytes    until it has also computed the maximum of all bytes as 64-bit integers, which is limited by the
                 speed of the memory for each format

The same is measured for batches of 256 images that are copied into one array, as in a training loop.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from bua.features import FlatFeatures, open_features, open_writer
from bua.structures import Regions

BOXES, DIM, BATCH = 36, 2048, 256
FORMATS = ("flat-fp16", "tsv", "npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="number of images in the files (%(default)s)")
    parser.add_argument(
        "--reads", type=int, default=4000, help="number of images that one measurement reads (%(default)s)"
    )
    parser.add_argument(
        "--repeat", type=int, default=5, help="number of measurements, of which the best is printed (%(default)s)"
    )
    parser.add_argument("--folder", help="where to write the files; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ids = np.random.default_rng(0).permutation(10 * args.images)[: args.images].tolist()
        write(Path(folder), ids)
        chosen = np.random.default_rng(1).choice(ids, args.reads).tolist()
        readers = readers_of(Path(folder), ids)
        print(f"{args.images} images of {BOXES} x {DIM}, microseconds per image, and the ratio to the flat format")
        print(f"{'':<30}{'array':>16}{'touched':>16}{'all bytes':>16}")
        print_rows(measure(readers, USES, chosen, args.repeat))
        print(f"\nbatches of {BATCH} images, microseconds per image")
        batches = [chosen[start : start + BATCH] for start in range(0, len(chosen) - BATCH + 1, BATCH)]
        print_rows(measure(batches_of(Path(folder), ids), (nothing,), batches, args.repeat, images=BATCH))


def nothing(array: np.ndarray) -> None:
    pass


def touch(array: np.ndarray) -> int:
    return array.reshape(-1).view(np.uint64)[::512].max()


def read_all(array: np.ndarray) -> int:
    return array.reshape(-1).view(np.uint64).max()


USES = (nothing, touch, read_all)


def write(folder: Path, ids: list[int]) -> None:
    rng = np.random.default_rng(2)
    boxes = np.zeros((BOXES, 4), np.float32)
    features = rng.random((BOXES, DIM), np.float32)
    for format in FORMATS:
        with open_writer(folder / format, format) as writer:
            for number, image_id in enumerate(ids):
                writer.append(Regions(image_id, 640, 480, boxes, np.roll(features, number, axis=0)))
            writer.finish()
    with h5py.File(folder / "features.hdf5", "w") as file:
        data = file.create_dataset("image_features", (len(ids), BOXES, DIM), np.float16)
        for number in range(len(ids)):
            data[number] = np.roll(features, number, axis=0)


def readers_of(folder: Path, ids: list[int]) -> dict:
    flat, tsv, npz = FlatFeatures(folder / "flat-fp16"), open_features(folder / "tsv"), open_features(folder / "npz")
    data = h5py.File(folder / "features.hdf5")["image_features"]
    rows = {image_id: row for row, image_id in enumerate(ids)}
    for image_id in ids[:: len(ids) // 9]:
        for features in (data[rows[image_id]], tsv[image_id].features, npz[image_id].features):
            if not np.array_equal(flat.features(image_id), features.astype(np.float16)):
                raise SystemExit(f"image {image_id}: the formats do not agree")
    return {
        "flat-fp16": flat.features,
        "h5py": lambda image_id: data[rows[image_id]],
        "flat-fp16, all as float32": lambda image_id: flat[image_id].features,
        "tsv, float32": lambda image_id: tsv[image_id].features,
        "npz, float32": lambda image_id: npz[image_id].features,
    }


def batches_of(folder: Path, ids: list[int]) -> dict:
    flat = FlatFeatures(folder / "flat-fp16")
    data = h5py.File(folder / "features.hdf5")["image_features"]
    rows = {image_id: row for row, image_id in enumerate(ids)}
    out = np.zeros((BATCH, BOXES, DIM), np.float16)

    def one_by_one(chosen: list[int]) -> np.ndarray:
        for place, image_id in enumerate(chosen):
            out[place] = data[rows[image_id]]
        return out

    def selected(chosen: list[int]) -> np.ndarray:
        found, places = np.unique([rows[image_id] for image_id in chosen], return_inverse=True)
        np.take(data[found], places, axis=0, out=out)
        return out

    return {
        "flat-fp16, read": lambda chosen: flat.read(chosen, out).features,
        "h5py, one by one": one_by_one,
        "h5py, a list of rows": selected,
    }


def measure(readers: dict, uses: tuple, chosen: list, repeat: int, images: int = 1) -> dict[str, list[float]]:
    """Returns the microseconds per image for each reader and use: the best of ``repeat`` measurements.

    The readers are measured in turn, so that changes in the speed of the machine affect all of them.

    Args:
        images: Number of images that one read returns.
    """
    best = {name: [float("inf")] * len(uses) for name in readers}
    for _ in range(repeat):
        for name, read in readers.items():
            for place, use in enumerate(uses):
                start = time.perf_counter()
                for item in chosen:
                    use(read(item))
                seconds = time.perf_counter() - start
                best[name][place] = min(best[name][place], seconds / len(chosen) / images * 1e6)
    return best


def print_rows(rows: dict[str, list[float]]) -> None:
    flat = next(iter(rows.values()))
    for name, times in rows.items():
        cells = (f"{value:.2f} {f'({value / base:.1f})':>8}" for value, base in zip(times, flat))
        print(f"{name:<30}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
