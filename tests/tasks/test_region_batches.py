"""Tests of reading regions into tensors and batches; those of each task's batches test more."""

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionReader, every_item_once

DIM = 3


def image(image_id: int) -> Regions:
    """An image of as many boxes as its id says."""
    rng = np.random.default_rng(image_id)
    corners = rng.integers(0, 50, (image_id, 4)).astype(np.float32)
    return Regions(image_id, 100, 50, corners, rng.random((image_id, DIM), np.float32))


def test_images_without_boxes():
    reader = RegionReader([{0: image(0), 1: image(1)}])
    features, boxes, mask = reader.read(np.array([0, 0]), np.array([0, 0]))
    assert features.shape == (2, 1, DIM)
    assert boxes.shape == (2, 1, 4)
    assert not mask.any()
    assert not features.any()


def test_an_image_of_unknown_size_has_finite_boxes():
    regions = image(1)
    regions.width = regions.height = 0
    _, boxes, _ = RegionReader([{1: regions}]).read(np.array([1]), np.array([0]))
    assert boxes.isfinite().all()


def test_stores_must_be_of_one_detector():
    other = image(1)
    other.features = np.zeros((len(other), 5), np.float32)
    with pytest.raises(InputError, match="features: the feature dimension is 3 in one and 5 in another; use"):
        RegionReader([{1: image(1)}, {2: other}])
    with pytest.raises(InputError, match="features: no image has any regions"):
        RegionReader([{0: image(0)}])
    with pytest.raises(InputError, match="features: no files given"):
        RegionReader.open([])


def test_images_of_several_files_in_one_batch():
    reader = RegionReader([{1: image(1), 2: image(2)}, {3: image(3)}])
    maker = BatchMaker(np.array([3, 1, 2, 3]), reader, "toy")
    batch = maker(np.array([0, 1, 3]))
    assert batch.image_ids.tolist() == [1, 3, 3]
    for row, image_id in enumerate(batch.image_ids.tolist()):
        regions = image(image_id)
        assert batch.mask[row].tolist() == [i < image_id for i in range(3)]
        assert np.array_equal(batch.features[row, :image_id], regions.features)
        assert np.allclose(batch.boxes[row, :image_id], regions.boxes / [100, 50, 100, 50])
    first = BatchMaker(np.array([3, 1, 2, 3]), reader, "toy", max_boxes=2)(np.array([0, 1, 3]))
    assert first.features.shape == (3, 2, DIM)
    assert np.array_equal(first.features, batch.features[:, :2])


def test_every_item_once_keeps_those_about_an_image_together():
    ids = np.array([3, 1, 2, 3, 1])
    batches = every_item_once(BatchMaker(ids, RegionReader([{i: image(i) for i in (1, 2, 3)}]), "toy"), 2)
    assert [batch.image_ids.tolist() for batch in batches] == [[1, 1], [2, 3], [3]]


def test_a_batch_on_a_device_has_features_in_float32(tmp_path):
    path = write_features(tmp_path / "features.flat", map(image, range(1, 4)))
    maker = BatchMaker(np.array([3, 1, 2, 3]), RegionReader.open([path]), "toy")
    read = list(every_item_once(maker, 2))
    on_device = list(every_item_once(maker, 2, device="cpu"))
    assert [batch.features.dtype for batch in read] == [torch.float16] * 2
    assert [batch.features.dtype for batch in on_device] == [torch.float32] * 2
    for expected, found in zip(read, on_device):
        assert torch.equal(found.features, expected.features.float())
        assert torch.equal(found.boxes, expected.boxes)


def test_one_image_is_a_batch_of_one_item():
    regions = image(3)
    regions.features = np.ones_like(regions.features)
    batch = RegionBatch.of_image(regions, max_boxes=2)
    assert batch.features.shape == (1, 2, DIM)
    assert batch.mask.all()
    scale = np.array([regions.width, regions.height] * 2, np.float32)
    assert np.allclose(batch.boxes[0].numpy() * scale, regions.boxes[:2])
    assert not batch.without_regions().mask.any()
    assert batch.without_regions().features is batch.features
