"""DATA.MAX_BOXES takes the most confident regions, from every kind of features alike."""

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.structures import Regions
from bua.tasks.confident_regions import confident_regions, confident_rows
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionReader
from bua.tasks.resident_regions import ResidentReader

SCORES = np.array([0.2, 0.9, 0.5, 0.9, 0.1], np.float32)
IDS = np.array([5, 2, 7])


def image(image_id: int, count: int, scores: np.ndarray | None = None) -> Regions:
    corners = np.arange(4 * count, dtype=np.float32).reshape(-1, 4)
    labels = {} if scores is None else {"object_ids": np.arange(count), "object_scores": scores}
    return Regions(image_id, 100, 50, corners, np.arange(count, dtype=np.float32)[:, None] + [[0, 100]], **labels)


# Five regions with scores, two, and five without scores.
IMAGES = [image(5, 5, SCORES), image(2, 2, SCORES[:2]), image(7, 5)]


def test_the_most_confident_rows_stay_in_their_order():
    assert confident_rows(5, SCORES, 3).tolist() == [1, 2, 3]
    assert confident_rows(5, SCORES, 1).tolist() == [1]  # the first of equal ones
    assert confident_rows(5, None, 2).tolist() == [0, 1]
    assert confident_rows(5, SCORES, 5) is None
    assert confident_rows(5, SCORES, None) is None
    chosen = confident_regions(IMAGES[0], 2)
    assert chosen.object_ids.tolist() == [1, 3]
    assert chosen.features[:, 0].tolist() == [1, 3]
    assert confident_regions(IMAGES[0], 5) is IMAGES[0]


@pytest.mark.parametrize("kind", ["memory", "flat", "flat-fp16", "resident"])
def test_batches_of_every_reader(kind, tmp_path):
    if kind == "memory":
        reader = RegionReader([{one.image_id: one for one in IMAGES}])
    else:
        path = write_features(tmp_path / "features", IMAGES, "flat" if kind == "resident" else kind)
        reader = RegionReader.open([path])
        if kind == "resident":
            reader = ResidentReader(reader, IDS, "cpu", progress=False)
    maker = BatchMaker(IDS, reader, "toy", max_boxes=3)
    batch = maker(np.arange(3))
    assert batch.features[:, :, 0].tolist() == [[1, 2, 3], [0, 1, 0], [0, 1, 2]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    assert batch.boxes[0, 0].tolist() == pytest.approx([0.04, 0.1, 0.06, 0.14])
    if maker.num_boxes is not None:
        assert maker.num_boxes.tolist() == [3, 2, 3]
    everything = BatchMaker(IDS, reader, "toy")(np.arange(3))
    assert everything.features[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]


def test_one_image_gives_the_same_regions():
    batch = RegionBatch.of_image(IMAGES[0], 3)
    assert batch.features[0, :, 0].tolist() == [1, 2, 3]
    assert torch.equal(batch.mask, torch.ones(1, 3, dtype=torch.bool))
