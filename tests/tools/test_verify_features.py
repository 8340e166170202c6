import os
import runpy
import shutil
import tarfile

import numpy as np
import pytest
from feature_files import write_features

from bua.features import open_features, open_writer
from bua.structures import Regions

main = runpy.run_path("tools/verify_features.py")["main"]


@pytest.fixture
def reference(shared_data):
    return shared_data / "caffe_features" / "train2014_obj36.tsv"


def rewritten(reference, path, change):
    store = open_features(reference)
    with open_writer(path, "lxmert-tsv") as writer:
        for i, image_id in enumerate(store):
            regions = store[image_id]
            if i == 3:
                change(regions)
            writer.append(regions)
    return list(store)[3]


def verify(features, reference):
    return main(["--features", str(features), "--reference", str(reference)])


def test_the_originals_file_agrees_with_itself(reference, tmp_path, capsys):
    copy = tmp_path / "reference.tsv"
    shutil.copy(reference, copy)
    assert verify(copy, reference) == 0
    assert "PASS: 10 images" in capsys.readouterr().out


def move(regions):
    regions.boxes = regions.boxes + [[0, 0, 0, 2.0 * (row == 5)] for row in range(36)]


def scramble(regions):
    regions.features = regions.features.copy()
    regions.features[5] = regions.features[5][::-1]


def drop(regions):
    for name in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
        setattr(regions, name, [row for i, row in enumerate(getattr(regions, name)) if i != 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [(move, "region 5: its box"), (scramble, "region 5: its feature"), (drop, "region 5 of the reference")],
)
def test_one_difference_fails_and_is_named(reference, tmp_path, capsys, change, message):
    image_id = rewritten(reference, tmp_path / "changed.tsv", change)
    assert verify(tmp_path / "changed.tsv", reference) == 1
    out = capsys.readouterr().out
    assert f"image {image_id}: {message}" in out
    assert "FAIL" in out


def test_it_extracts_and_compares(shared_data, tmp_path, capsys):
    """Compares with features that the same detector wrote before."""
    slim = [
        *["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160", "MODEL.RESNETS.DEPTH", "50"],
        *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
        *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"],
    ]
    extract = runpy.run_path("tools/extract.py")["main"]
    common = [
        "--weights",
        "random",
        "--images",
        str(shared_data / "images"),
        "--config-file",
        "configs/vg_r101_caffe.yaml",
    ]
    mine = tmp_path / "mine.tsv"
    assert extract([*common, "--output", str(mine), "--format", "lxmert-tsv", *slim]) == 0
    assert main([*common, "--reference", str(mine), *slim]) == 0
    assert "PASS: 10 images" in capsys.readouterr().out


def test_images_in_tar_shards_are_refused(tmp_path, capsys):
    regions = Regions(7, 9, 8, np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32))
    reference = write_features(tmp_path / "reference", [regions])
    (tmp_path / "7.png").write_bytes(b"image")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "7.png", "7.png")
    images = str(tmp_path / "images.tar")
    assert main(["--weights", "random", "--images", images, "--reference", str(reference)]) == 2
    assert "images.tar: images in tar shards cannot be verified; unpack them" in capsys.readouterr().err


@pytest.mark.skipif("BUA_CAFFE_WEIGHTS" not in os.environ, reason="BUA_CAFFE_WEIGHTS names no released 36-box weights")
def test_the_released_weights_give_the_originals_features(shared_data, reference):
    weights = os.environ["BUA_CAFFE_WEIGHTS"]
    arguments = ["--images", str(shared_data / "images"), "--config-file", "configs/vg_r101_caffe_36.yaml"]
    assert main(["--weights", weights, *arguments, "--reference", str(reference)]) == 0
