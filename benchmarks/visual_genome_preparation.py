#!/usr/bin/env python3
"""Measures time and memory of preparing the whole of Visual Genome, with synthetic files of its size and format.

It makes objects.json (or scene_graphs.json), attributes.json, image_data.json, vocabularies and splits with 108,077
images, 3.8 million objects and 2.8 million attributes in a temporary folder (1.1 GB). Then it measures, each in a
process of its own, reading the two large files with ``json.load`` (the baseline, with which the original's preparation
begins), ``bua.visual_genome.prepare.prepare``, and reading the train split into a ``DetectionDataset``.

    python benchmarks/visual_genome_preparation.py            # about 4 minutes, 1.5 GB on disk, 7 GB of memory
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bua.detection.annotations import DetectionDataset
from bua.visual_genome.prepare import prepare

TIME_LIMIT, MEMORY_LIMIT = 180, 6.0  # seconds and GB that prepare may use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=108_077, help="number of images")
    parser.add_argument(
        "--source", choices=("objects", "scene_graphs"), default="objects", help="file with the objects"
    )
    parser.add_argument("--folder", type=Path, help="where the temporary folder is created; by default the system's")
    parser.add_argument("--skip-baseline", action="store_true", help="leave out the baseline, which uses most memory")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        make_files(root, args.images, args.source)
        for path in sorted(root.glob("*.json")):
            print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
        rows = []
        if not args.skip_baseline:
            rows.append(("json.load of both", *measure(load_whole, root, args.source)))
        rows.append(("prepare", *measure(prepare_quietly, root)))
        rows.append(("load train", *measure(load_train, root)))
        written = root / "annotations" / "visual_genome_train.json"
        print(f"{written.name}: {written.stat().st_size / 1e6:.0f} MB")
    print_table(rows)


def print_table(rows: list[tuple[str, float, float, float]]) -> None:
    baseline, baseline_seconds, _, baseline_memory = rows[0]
    print(
        f"\n{'step':22}{'seconds':>10}{'CPU s':>10}{'peak GB':>10}{'x time':>10}{'x memory':>10}   "
        f"(x: relative to {baseline!r})"
    )
    for step, seconds, cpu, memory in rows:
        ratios = f"{seconds / baseline_seconds:10.2f}{memory / baseline_memory:10.2f}"
        print(f"{step:22}{seconds:10.1f}{cpu:10.1f}{memory:10.2f}{ratios}")
    _, seconds, _, memory = next(row for row in rows if row[0] == "prepare")
    kept = seconds < TIME_LIMIT and memory < MEMORY_LIMIT
    print(f"prepare: limits of {TIME_LIMIT} s and {MEMORY_LIMIT:.0f} GB {'kept' if kept else 'EXCEEDED'}")


def load_whole(root: Path, source: str) -> None:
    files = []
    for name in ("attributes", source):
        with open(root / f"{name}.json") as file:
            files.append(json.load(file))


def prepare_quietly(root: Path) -> None:
    prepare(root, progress=False)


def load_train(root: Path) -> None:
    DetectionDataset(root / "annotations" / "visual_genome_train.json", root)


def measure(function: Callable, *args) -> tuple[float, float, float]:
    """Returns seconds, CPU seconds and peak resident memory in GB of a call in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        raise SystemExit(f"error: {function.__name__} ended with exit code {process.exitcode}") from None
    process.join()
    return result


def _call(sender, function: Callable, args: tuple) -> None:
    start = time.perf_counter()
    function(*args)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    sender.send((seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9))


def make_files(root: Path, num_images: int, source: str) -> None:
    """Writes files of version 1.4 with 35 objects per image, 85 % of them of the 1600 classes, half with attributes."""
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("an", "el", "ir", "o", "ut") for c in WORD_ENDS])
    rng.shuffle(words)
    adjectives, nouns = words[:600], words[600:4600]
    (root / "vocab").mkdir()
    (root / "vocab" / "objects_vocab.txt").write_text("\n".join(nouns[:1600]))
    (root / "vocab" / "attributes_vocab.txt").write_text("\n".join(adjectives[:400]))
    (root / "vocab" / "relations_vocab.txt").write_text("on,on top of\nhas")
    _make_splits(root, num_images, rng)

    noun_odds = 1 / (np.arange(len(nouns)) + 30)
    adjective_odds = 1 / (np.arange(len(adjectives)) + 5)
    object_id = 0
    with (
        open(root / "image_data.json", "w") as image_data,
        open(root / "attributes.json", "w") as attributes,
        open(root / f"{source}.json", "w") as objects,
    ):
        for image_id in range(1, num_images + 1):
            size = (500, 375) if image_id % 3 else (800, 600)
            count = max(1, int(rng.normal(35.2, 9)))
            chosen = rng.choice(nouns, count, p=noun_odds / noun_odds.sum()).tolist()
            numbers = np.minimum(rng.geometric(0.5, count) - 1, 4)
            described = iter(rng.choice(adjectives, numbers.sum(), p=adjective_odds / adjective_odds.sum()).tolist())
            corners = (rng.random((count, 2)) * size).astype(int).tolist()
            sides = (rng.random((count, 2)) * size).astype(int).tolist()
            image_objects, image_attributes = [], []
            for name, number, (x, y), (w, h) in zip(chosen, numbers.tolist(), corners, sides):
                object_id += 1
                record = {"synsets": [f"{name}.n.01"], "h": h, "object_id": object_id, "names": [name], "w": w}
                record |= {"y": y, "x": x}
                image_objects.append(record | {"merged_object_ids": []})
                extra = {"attributes": [next(described) for _ in range(number)]} if number else {}
                image_attributes.append(record | extra)
            url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{image_id}.jpg"
            opening = ", " if image_id > 1 else "["
            meta = {"width": size[0], "url": url, "height": size[1], "image_id": image_id, "coco_id": None}
            image_data.write(opening + json.dumps(meta | {"flickr_id": None}))
            attributes.write(opening + json.dumps({"image_id": image_id, "attributes": image_attributes}))
            if source == "objects":
                record = {"image_id": image_id, "objects": image_objects, "image_url": url}
            else:
                relationships = _relationships(image_objects[:21])
                record = {"relationships": relationships, "image_id": image_id, "objects": image_objects}
            objects.write(opening + json.dumps(record))
        for file in (image_data, attributes, objects):
            file.write("]")


WORD_ENDS = [f"{c}{v}{d}" for c in "bdgkmnst" for v in "aeiou" for d in ("", "n")]


def _relationships(objects: list[dict]) -> list[dict]:
    pairs = itertools.pairwise(objects)
    return [
        {
            "relationship_id": subject["object_id"],
            "predicate": "ON",
            "synsets": ["along.r.01"],
            "subject_id": subject["object_id"],
            "object_id": other["object_id"],
        }
        for subject, other in pairs
    ]


def _make_splits(root: Path, num_images: int, rng: np.random.Generator) -> None:
    order = rng.permutation(np.arange(1, num_images + 1))
    held_out = max(1, num_images * 5000 // 108_077)
    splits = {"val": order[:held_out], "test": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    (root / "splits").mkdir()
    for split, ids in splits.items():
        (root / "splits" / f"{split}.txt").write_text("".join(f"VG_100K_2/{n}.jpg xml/{n}.xml\n" for n in ids))


if __name__ == "__main__":
    main()
