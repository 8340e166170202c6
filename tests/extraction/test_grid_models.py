"""Extraction with a grid model of grid-feats-vqa: of its regions, and of the files that it publishes."""

import cv2
import numpy as np
import pytest
import torch

from bua.commands import main
from bua.extraction import extract
from bua.features import convert_features, open_features

CONFIG = "grid_feats/x152pp.yaml"
SLIM = [
    *["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"],
    *["MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.NUM_GROUPS", "2", "MODEL.RESNETS.WIDTH_PER_GROUP", "2"],
    *["MODEL.ROI_BOX_HEAD.FC_DIM", "12", "MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.CONV_DIMS", "[16]", "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", "60", "DATALOADER.NUM_WORKERS", "0"],
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for image_id, size in {"COCO_train2014_000000000009": (60, 80), "b": (90, 50)}.items():
        cv2.imwrite(str(folder / f"{image_id}.png"), generator.integers(0, 256, (*size, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def grids(images, tmp_path_factory):
    """Grid features of the images as ``bua extract`` writes them, in the authors' files and in bua's."""
    folder = tmp_path_factory.mktemp("grids")
    for format in ("grid-pth", "flat"):
        options = ["--config-file", CONFIG, "--detector", "random", "--format", format, "--grid"]
        files = ["--images", str(images), "--output", str(folder / format)]
        assert main(["extract", *options, *files, *SLIM]) == 0
    return folder


def test_grid_features_are_written_as_the_authors_files(grids):
    assert sorted(path.name for path in (grids / "grid-pth").iterdir()) == ["9.pth", "b.pth"]
    written = torch.load(grids / "grid-pth" / "9.pth", weights_only=True)
    # The image is resized to 96 x 128 pixels.
    assert (written.dtype, written.shape) == (torch.float32, (1, 64, 3, 4))
    store = open_features(grids / "flat")
    assert (store[9].width, store[9].height) == (80, 60)
    np.testing.assert_array_equal(written.flatten(2)[0].T, store[9].features)
    np.testing.assert_allclose(store[9].boxes[0], [0, 0, 20, 20])
    np.testing.assert_allclose(store[9].boxes[-1], [60, 40, 80, 60])


def test_other_grid_features_become_the_authors_files(grids, tmp_path):
    assert convert_features(grids / "flat", tmp_path / "converted", "grid-pth") == 2
    for name in ("9.pth", "b.pth"):
        found, expected = (
            torch.load(folder / name, weights_only=True) for folder in (tmp_path / "converted", grids / "grid-pth")
        )
        assert torch.equal(found, expected)


def test_the_authors_files_are_verified(images, grids, tmp_path, capsys):
    reference = ["--reference", str(grids / "grid-pth")]
    extracting = ["--detector", "random", "--images", str(images), "--config-file", CONFIG]
    assert main(["verify-features", *extracting, *reference, *SLIM]) == 0
    assert main(["verify-features", "--features", str(grids / "flat"), *reference]) == 0
    assert capsys.readouterr().out.count("PASS: 2 images") == 2
    changed = torch.load(grids / "grid-pth" / "9.pth", weights_only=True)
    changed[0, :, 1, 2] = changed[0, :, 2, 1].flip(0) + 1
    for name, values in {"9": changed, "b": torch.load(grids / "grid-pth" / "b.pth", weights_only=True)}.items():
        torch.save(values, tmp_path / f"{name}.pth")
    assert main(["verify-features", "--features", str(grids / "flat"), "--reference", str(tmp_path)]) == 1
    assert "image 9: region 6: its feature has a cosine of" in capsys.readouterr().out


@pytest.mark.parametrize("regressed", [False, True])
def test_regions_have_the_features_of_the_box_head(images, tmp_path, regressed):
    summary = extract(
        images,
        tmp_path / "out",
        config_file=CONFIG,
        weights="random",
        overrides=SLIM,
        format="npz",
        max_boxes=12,
        regressed=regressed,
    )
    assert (summary.done, summary.failed) == (2, 0)
    for regions in open_features(tmp_path / "out").values():
        assert regions.features.shape[0] >= 10
        assert regions.features.shape[1] == 12
        assert regions.object_ids.max() < 7
        assert regions.attribute_ids.max() < 5


def test_a_format_of_feature_maps_needs_a_grid(images, tmp_path, capsys):
    options = ["--config-file", CONFIG, "--detector", "random", "--format", "grid-pth"]
    assert main(["extract", *options, "--images", str(images), "--output", str(tmp_path / "out"), *SLIM]) == 2
    assert "format grid-pth: holds feature maps of whole images, not regions; add --grid" in capsys.readouterr().err
