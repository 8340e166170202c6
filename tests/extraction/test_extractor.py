import json

import cv2
import numpy as np
import pytest
import torch

from bua.data.images import Resize
from bua.extraction import ImageFile, extract_with
from bua.features import FORMATS, open_features, open_writer
from bua.structures import RegionPredictions


class FakeDetector:
    """Regions that depend on the picture's pixels alone."""

    convention = "caffe"
    prepare = Resize(20, 40, "caffe")

    def infer(self, batch):
        return [self.regions(picture) for picture in batch]

    def regions(self, picture):
        generator = torch.Generator().manual_seed(int(picture.image.sum()))
        corners = torch.rand(30, 2, generator=generator) * 10
        return RegionPredictions(
            width=picture.width,
            height=picture.height,
            proposals=torch.cat([corners, corners + 3], dim=1),
            objectness=torch.ones(30),
            class_probs=(torch.randn(30, 9, generator=generator) * 3).softmax(1)[:, :-1],
            boxes=torch.zeros(30, 8, 4),
            features=torch.rand(30, 6, generator=generator),
            attribute_probs=torch.rand(30, 5, generator=generator),
        )


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (20 + i, 30, 3), np.uint8))
        files.append(ImageFile(str(path), i))
    return files


def run(images, output, format="tsv", **options):
    writer = open_writer(output, format)
    try:
        return extract_with(
            FakeDetector(), images, writer, failures=output.with_name(output.name + ".failures.jsonl"), **options
        )
    finally:
        writer.close()


def assert_same_features(a, b):
    a, b = open_features(a), open_features(b)
    assert set(a) == set(b)
    for image_id in a:
        assert np.array_equal(a[image_id].boxes, b[image_id].boxes)
        assert np.array_equal(a[image_id].features, b[image_id].features)


@pytest.mark.parametrize("format", FORMATS)
def test_every_picture_once(tmp_path, images, format):
    summary = run(images, tmp_path / "out", format, max_boxes=12)
    assert (summary.done, summary.skipped, summary.failed) == (7, 0, 0)
    assert summary.images_per_second > 0
    store = open_features(tmp_path / "out")
    assert set(store) == set(range(7))
    for i in range(7):
        assert (store[i].width, store[i].height) == (30, 20 + i)
        assert 10 <= len(store[i]) <= 12
    again = run(images, tmp_path / "out", format, max_boxes=12)
    assert (again.done, again.skipped) == (0, 7)


def test_batches_and_workers_change_nothing(tmp_path, images):
    run(images, tmp_path / "plain")
    run(images, tmp_path / "parallel", batch_size=3, num_workers=2)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "parallel").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_goes_on_after_an_interruption(tmp_path, images, format, monkeypatch):
    run(images, tmp_path / "whole", format)

    def interrupt(self, picture):
        if picture.image_id == 4:
            raise KeyboardInterrupt
        return original(self, picture)

    original = FakeDetector.regions
    monkeypatch.setattr(FakeDetector, "regions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "out", format)
    assert set(open_features(tmp_path / "out")) == {0, 1, 2, 3}
    monkeypatch.undo()
    summary = run(images, tmp_path / "out", format)
    assert (summary.done, summary.skipped) == (3, 4)
    assert_same_features(tmp_path / "whole", tmp_path / "out")


def test_failures_are_listed_and_tried_again(tmp_path, images):
    picture = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "5.png").unlink()
    images.append(ImageFile(images[0].path, "tab\tid"))
    summary = run(images, tmp_path / "out", batch_size=2)
    assert (summary.done, summary.failed) == (5, 3)
    lines = (tmp_path / "out.failures.jsonl").read_text().splitlines()
    failures = {failure["image_id"]: failure for failure in map(json.loads, lines)}
    assert set(failures) == {2, 5, "tab\tid"}
    assert failures[5]["path"] == images[5].path
    assert "No such file" in failures[5]["reason"]

    (tmp_path / "2.png").write_bytes(picture)
    summary = run(images[:5], tmp_path / "out")
    assert (summary.done, summary.skipped, summary.failed) == (1, 4, 0)
    assert not (tmp_path / "out.failures.jsonl").exists()
