"""Tests of keeping the regions of a data set in the memory of a device. The device is the CPU."""

import logging

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.errors import InputError
from bua.structures import Regions
from bua.tasks import resident_regions
from bua.tasks.region_batches import BatchMaker, RegionReader, every_item_once
from bua.tasks.resident_regions import ResidentReader, on_device

DIM = 5
NUM_IMAGES = 40


def image(image_id: int) -> Regions:
    """An image with 0 to 6 boxes; the size of image 3 is unknown."""
    rng = np.random.default_rng(image_id)
    count = image_id * 5 % 7
    size = (0, 0) if image_id == 3 else (100 + image_id, 37 + image_id)
    boxes = rng.random((count, 4), np.float32) * 30
    return Regions(image_id, *size, boxes, rng.standard_normal((count, DIM), np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files, which have the images in an order of their own."""
    root = tmp_path_factory.mktemp("features")
    order = np.random.default_rng(0).permutation(NUM_IMAGES).tolist()
    for dtype, format in (("half", "flat-fp16"), ("full", "flat")):
        write_features(root / f"{dtype}_a", [image(i) for i in order if i < 25], format)
        write_features(root / f"{dtype}_b", [image(i) for i in order if i >= 25], format)
    write_features(root / "table.tsv", [image(i) for i in order if i * 5 % 7], "tsv")
    return root


def open_reader(folder, *names: str) -> RegionReader:
    return RegionReader.open([folder / name for name in names])


@pytest.mark.parametrize("names", [("half_a", "half_b"), ("full_a", "full_b"), ("half_a", "full_b")])
@pytest.mark.parametrize("images_at_a_time", [3, 256])
@pytest.mark.parametrize("max_boxes", [None, 2])
def test_has_what_the_files_have_to_the_bit(folder, monkeypatch, names, images_at_a_time, max_boxes):
    monkeypatch.setattr(resident_regions, "IMAGES_AT_A_TIME", images_at_a_time)
    reader = open_reader(folder, *names)
    ids = np.random.default_rng(1).integers(0, NUM_IMAGES, 200)
    kept = ResidentReader(reader, ids, "cpu", progress=False)
    assert kept.features.dtype == reader.dtype
    assert len(kept.features) == sum(len(image(i)) for i in np.unique(ids)) + 1
    makers = [BatchMaker(ids, one, "toy", max_boxes) for one in (reader, kept)]
    batches = [list(every_item_once(maker, 16)) for maker in makers]
    assert len(batches[0]) == 13
    for expected, found in zip(*batches, strict=True):
        assert found.image_ids.tolist() == expected.image_ids.tolist()
        for name in ("features", "boxes", "mask"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_a_batch_of_images_without_boxes(folder):
    kept = ResidentReader(open_reader(folder, "half_a"), np.array([0, 7, 1]), "cpu", progress=False)
    features, boxes, mask = kept.read(np.array([7, 0]), np.array([0, 0]))
    assert features.shape == (2, 1, DIM)
    assert not features.any()
    assert not boxes.any()
    assert not mask.any()


def test_only_the_images_that_were_asked_for_are_there(folder):
    kept = ResidentReader(open_reader(folder, "half_a", "half_b"), np.array([1, 30]), "cpu", progress=False)
    for other in (0, 2, 39):
        with pytest.raises(KeyError, match=str(other)):
            kept.read(np.array([1, other]), np.array([0, 0]))
    with pytest.raises(InputError, match="lacks 1 of the 2 images of toy: 99"):
        ResidentReader(open_reader(folder, "half_a"), np.array([1, 99]), "cpu", name="toy", progress=False)


@pytest.mark.parametrize("setting", [None, False, "auto"])
def test_the_cpu_keeps_features_only_when_told_to(folder, setting):
    reader = open_reader(folder, "half_a")
    assert on_device(reader, np.arange(5), "cpu", setting) is reader
    assert isinstance(on_device(reader, np.arange(5), "cpu", True, progress=False), ResidentReader)


@pytest.mark.parametrize("free", [320, 330])
def test_what_does_not_fit_on_a_gpu(folder, monkeypatch, caplog, free):
    """9 regions and the padding, of 5 x 2 + 16 bytes each, are 260 bytes."""
    assert sum(len(image(i)) for i in range(4)) == 9
    made = []
    monkeypatch.setattr(resident_regions, "free_memory", lambda device: free)
    monkeypatch.setattr(resident_regions, "ResidentReader", lambda *args, **kwargs: made.append(args[2]) or "kept")
    reader, ids = open_reader(folder, "half_a"), np.arange(4)
    message = "DATA.ON_DEVICE: the features of 4 images take .* GiB, which is more than 80% of the .* free on cuda"
    if free == 330:
        assert on_device(reader, ids, "cuda", True) == on_device(reader, ids, "cuda", "auto") == "kept"
        assert made == [torch.device("cuda")] * 2
        return
    with pytest.raises(InputError, match=message):
        on_device(reader, ids, "cuda", True)
    with caplog.at_level(logging.WARNING):
        assert on_device(reader, ids, "cuda", "auto") is reader
    assert "the features are read from their files" in caplog.text
    assert not made


def test_formats_that_are_not_flat(folder, caplog):
    reader = open_reader(folder, "table.tsv")
    with pytest.raises(InputError, match=r"table\.tsv is not in the flat format; convert it"):
        on_device(reader, np.array([1, 2]), "cpu", True)
    with caplog.at_level(logging.WARNING):
        assert on_device(reader, np.array([1, 2]), "cuda", "auto") is reader
    assert "is not in the flat format" in caplog.text


def test_loading_shows_progress(folder, capsys):
    ResidentReader(open_reader(folder, "half_a"), np.arange(5), "cpu")
    assert "features to cpu: 100%" in capsys.readouterr().err
