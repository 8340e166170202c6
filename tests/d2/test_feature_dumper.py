"""Features that Detectron2's inference loop writes, when the process is killed or the disk is full."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

import bua.d2
from bua.errors import InputError
from bua.features import open_features
from bua.structures import RegionPredictions

IMAGES, CLASSES = 6, 4


def dump(folder, format):
    """Writes the features of images one after the other."""
    dumper = bua.d2.FeatureDumper(folder / "out", format, min_boxes=5, max_boxes=5)
    dumper.reset()
    for image_id in range(IMAGES):
        dumper.process([{"image_id": image_id}], [{"objects": regions(image_id)}])
    dumper.evaluate()


def regions(image_id):
    generator = torch.Generator().manual_seed(image_id)
    corners = torch.rand(9, 2, generator=generator) * 10
    return RegionPredictions(
        width=20,
        height=20,
        proposals=torch.cat([corners, corners + 3], dim=1),
        objectness=torch.ones(9),
        class_probs=torch.rand(9, CLASSES, generator=generator),
        boxes=torch.zeros(9, CLASSES, 4),
        features=torch.rand(9, 3, generator=generator),
        attribute_probs=None,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder for each format, with the features of a run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    for format in ("tsv", "npz", "flat"):
        (folder / format).mkdir()
        dump(folder / format, format)
    return folder


@pytest.mark.parametrize("format", ["tsv", "npz", "flat"])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(bua.d2.FeatureDumper, "process", 4), (Path, "rename", 1), (Path, "rename", 2), (shutil, "rmtree", 1)],
    ids=["while writing", "before a file gets its name", "between two names", "before the parts are removed"],
)
def test_a_run_that_is_killed_leaves_no_output_or_a_whole_one(tmp_path, whole, monkeypatch, format, owner, name, calls):
    function, left = getattr(owner, name), [calls]

    def kill_at_call(*args, **options):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    if not (child := os.fork()):
        try:
            setattr(owner, name, kill_at_call)
            dump(tmp_path, format)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    # Formats without further files have one name to give.
    assert killed or (name, calls) == ("rename", 2)
    if not (tmp_path / "out").exists():
        assert killed
        dump(tmp_path, format)
        assert not (tmp_path / "out.parts").exists()
    there, expected = open_features(tmp_path / "out"), open_features(whole / format / "out")
    assert sorted(there) == sorted(expected) == list(range(IMAGES))
    for image_id, regions in expected.items():
        assert (there[image_id].boxes == regions.boxes).all()
        assert (there[image_id].features == regions.features).all()


@pytest.mark.parametrize("method", ["append", "finish"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, method):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"bua.features.tsv.TsvWriter.{method}", full)
    with pytest.raises(InputError, match=r"out: cannot be written: No space left on device; make room and run"):
        dump(tmp_path, "tsv")
    monkeypatch.undo()
    dump(tmp_path, "tsv")
    assert len(open_features(tmp_path / "out")) == IMAGES
