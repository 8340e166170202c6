import json
from collections import Counter

import numpy as np
import pytest

from bua.detection.annotations import DetectionDataset
from bua.visual_genome.official import clean_object_name
from bua.visual_genome.prepare import prepare
from bua.visual_genome.zero_rows import ZeroRowCounter
from bua.vocabulary import Vocabulary

NAMES = ["dog", "White dog.", "Stopsign", "stop sign", "tree", "sky", "Sky.", "wall", "blue wall", "rare thing", ""]
VOCABULARY = Vocabulary(["dog", "stop sign,stopsign"])


def rows_of_zeros_of_the_original(images: dict[int, list[str]], num_names: int) -> dict[int, int]:
    """What data/genome/setup_vg.py and lib/datasets/vg.py leave of each image: the empty rows of its arrays."""
    counts = Counter(clean_object_name(text)[0] for texts in images.values() for text in texts)
    frequent = set(sorted(counts, key=lambda name: (-counts[name], name))[:num_names])
    numbers = {}
    for image_id, texts in images.items():
        xml = [name for name in (clean_object_name(text)[0] for text in texts) if name and name in frequent]
        boxes = np.zeros((len(xml), 4))
        filled = 0
        for name in xml:
            if VOCABULARY.id(name) is not None:
                boxes[filled] = 1
                filled += 1
        numbers[image_id] = int((boxes == 0).all(axis=1).sum())
    return numbers


@pytest.mark.parametrize("num_names", [1, 3, 5, 100])
def test_objects_outside_of_the_vocabulary_with_a_frequent_name_are_counted(num_names):
    rng = np.random.default_rng(0)
    images = {number: rng.choice(NAMES, rng.integers(0, 12)).tolist() for number in range(20)}
    counter = ZeroRowCounter()
    for image_id, texts in images.items():
        counter.add(image_id, iter(texts))
    found = counter.numbers(VOCABULARY, num_names)
    assert found == rows_of_zeros_of_the_original(images, num_names)
    assert num_names == 1 or sum(found.values()) > 0


def test_prepared_files_say_the_number_for_each_image(tmp_path):
    objects = {
        1: ["dog", "unknown", "another", "", "dog"],
        2: ["unknown"],  # no object of the vocabulary, so that it is in no annotation file
        3: ["stop sign"],
        4: ["dog", "unknown"],
    }
    numbers = range(1, 5)
    files = {
        "image_data": [{"image_id": number, "width": 100, "height": 50} for number in numbers],
        "attributes": [{"image_id": number, "attributes": []} for number in numbers],
        "objects": [
            {
                "image_id": number,
                "objects": [
                    {"object_id": 10 * number + place, "names": [name], "x": 1, "y": 2, "w": 3, "h": 4}
                    for place, name in enumerate(names)
                ],
            }
            for number, names in objects.items()
        ],
    }
    for name, records in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    for folder in ("splits", "vocab", "VG_100K"):
        (tmp_path / folder).mkdir()
    for split, ids in {"train": (1, 2), "val": (3,), "test": (4,)}.items():
        (tmp_path / "splits" / f"{split}.txt").write_text("".join(f"VG_100K/{n}.jpg xml/{n}.xml\n" for n in ids))
    VOCABULARY.write(tmp_path / "vocab" / "objects_vocab.txt")
    (tmp_path / "vocab" / "attributes_vocab.txt").write_text("red\n")
    found = {}
    for summary in prepare(tmp_path, progress=False).values():
        dataset = DetectionDataset(summary.annotation_file, tmp_path)
        found |= dict(zip(dataset.image_ids.tolist(), dataset.zero_rows.tolist()))
    assert found == {1: 2, 3: 0, 4: 1}
