"""A small world in VQA v2's files: things of one colour each, seen by an oracle in a detector's place."""

import json
from pathlib import Path

import numpy as np

from bua.features import open_writer
from bua.structures import Regions

THINGS, COLORS = ("star", "moon", "cup"), ("red", "green", "blue", "pink")
FEATURE_DIM = len(THINGS) + len(COLORS) + 2
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}


def write_world(root: Path, counts: dict[str, int]) -> None:
    """Writes ``vqa/`` (the official files of all splits), and ``features.flat`` of their images: one region for each
    thing and one of nothing, in any order."""
    (root / "vqa").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with open_writer(root / "features.flat", "flat") as writer:
        last = 0
        for split, count in counts.items():
            questions, annotations = [], []
            for image_id in range(last + 1, last + 1 + count):
                things = rng.permutation(len(THINGS))[: rng.integers(1, len(THINGS) + 1)]
                colors = rng.integers(0, len(COLORS), len(things))
                writer.append(see(image_id, things, colors, rng))
                asked = [(f"What color is the {THINGS[t]}?", COLORS[c], "other") for t, c in zip(things, colors)]
                asked.append(("How many things are there?", str(len(things)), "number"))
                for number, (text, answer, kind) in enumerate(asked):
                    ids = {"question_id": 1000 * image_id + number, "image_id": image_id}
                    questions.append(ids | {"question": text})
                    people = [{"answer": answer, "answer_id": person} for person in range(1, 11)]
                    annotation = {"question_type": text[:8].lower(), "answer_type": kind, "answers": people}
                    annotations.append(ids | annotation | {"multiple_choice_answer": answer})
            last += count
            subset = SUBSETS[split]
            for name, records in (("OpenEnded_mscoco_{}_questions", questions), ("mscoco_{}_annotations", annotations)):
                content = {name.rsplit("_", 1)[1]: records}
                (root / "vqa" / f"v2_{name.format(subset)}.json").write_text(json.dumps(content))
        writer.finish()


def see(image_id: int, things: np.ndarray, colors: np.ndarray, rng: np.random.Generator) -> Regions:
    """What the oracle says of an image of 100 x 50 pixels."""
    features = rng.random((len(things) + 1, FEATURE_DIM)) / 5
    rows = np.arange(len(things))
    features[rows, things] += 1
    features[rows, len(THINGS) + colors] += 1
    features[-1, -1] += 1
    corners = rng.random((len(features), 2)) * [60, 30]
    boxes = np.concatenate([corners, corners + np.array([40, 20])], axis=1)
    order = rng.permutation(len(features))
    return Regions(image_id, 100, 50, boxes[order].astype(np.float32), features[order].astype(np.float32))
