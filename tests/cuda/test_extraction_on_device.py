"""Extraction on a GPU: the features of the CPU, with few waits an image."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from on_device import PRETENDED, assert_same_direction, assert_same_values, at_most
from script_loading import load_script

from bua.checkpoint import save_checkpoint
from bua.config import load_cfg
from bua.extraction import Extractor, ImageFile, RegionChoice
from bua.extraction.extractor_config import RANDOM_WEIGHTS, ExtractorConfig
from bua.features import open_features
from bua.modeling import build_detector

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "vg_r101.yaml"
SLIM = (
    *("MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RPN.CONV_DIMS", "[8]"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "30"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "50"),
    *("MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "20"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "160"),
)
GRID_CONFIG = CONFIG.with_name("grid_feats") / "x152pp.yaml"
GRID_SLIM = (*SLIM, "MODEL.RESNETS.NUM_GROUPS", "2", "MODEL.ROI_BOX_HEAD.FC_DIM", "16")
VINVL_CONFIG = CONFIG.with_name("vinvl_x152c4.yaml")
VINVL_SLIM = (*SLIM, "MODEL.RESNETS.NUM_GROUPS", "2")
# Images of mixed sizes. The first ones are extracted before waits are counted.
SIZES = [(60, 90), (90, 60), (70, 70), (60, 80), (96, 150), (80, 60)] * 2
FIRST = 4
WAITS = {1: 8, 8: 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[ImageFile]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        # Smooth noise, so that proposals are of many sizes.
        image = cv2.resize(rng.integers(0, 256, (8, 12, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return [ImageFile(str(folder / f"{number}.png"), number) for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A detector whose class probabilities differ between regions, as those of a trained one do."""
    path = tmp_path_factory.mktemp("detector") / "model.pth"
    torch.manual_seed(0)
    detector = build_detector(load_cfg(CONFIG, [*SLIM, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]))
    state = detector.state_dict()
    scores = state["roi_heads.box_predictor.cls_score.weight"]
    scores *= 4 / (scores.norm(dim=1).mean() + 1e-6)
    save_checkpoint(path, model=state)
    return str(path)


@pytest.fixture(scope="module")
def boxes(images, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("boxes") / "boxes.json"
    rng = np.random.default_rng(1)
    content = {}
    for image, (height, width) in zip(images, SIZES):
        corners = np.sort(rng.random((7, 2, 2)) * [width - 1, height - 1], axis=1)
        content[str(image.image_id)] = corners.reshape(-1, 4).round(2).tolist()
    path.write_text(json.dumps(content))
    return str(path)


def choose(kind: str, boxes: str) -> RegionChoice:
    given = {"boxes": boxes} if kind == "boxes" else {kind: True} if kind in ("regressed", "grid") else {}
    return RegionChoice(5, 20, **given)


def make_extractor(weights: str, choice: RegionChoice, device: str, precision: str, batch_size: int) -> Extractor:
    config = ExtractorConfig(
        str(CONFIG), SLIM, weights, choice, precision=precision, batch_size=batch_size, num_workers=2
    )
    return Extractor.from_config(config, device)


def extract(extractor: Extractor, images: list[ImageFile]) -> dict:
    outcomes = list(extractor(images))
    assert all(outcome.reason is None for outcome in outcomes), outcomes
    return {outcome.image.image_id: outcome.regions for outcome in outcomes}


@pytest.mark.parametrize(
    ("kind", "precision", "batch_size"),
    [
        *((kind, "fp32", batch_size) for kind in ("regions", "regressed", "boxes", "grid") for batch_size in WAITS),
        ("regions", "bf16", 1),
        *((kind, "bf16", 8) for kind in ("regions", "regressed", "boxes", "grid")),
    ],
)
def test_features_are_those_of_the_cpu(images, weights, boxes, kind, precision, batch_size):
    choice = choose(kind, boxes)
    extractor = make_extractor(weights, choice, "cuda", precision, batch_size)
    first, rest = images[:FIRST], images[FIRST:]
    extract(extractor, first)
    part = f"extraction, {kind}, {precision}, batch size {batch_size}"
    with at_most(WAITS[batch_size], part, len(rest)):
        found = extract(extractor, rest)
    expected = extract(make_extractor(weights, choice, "cpu", "fp32", 1), rest[:2])
    for image_id, regions in expected.items():
        compare(found[image_id], regions, kind, precision)


@pytest.mark.parametrize(("kind", "precision"), [("boxes", "fp32"), ("grid", "bf16")])
def test_features_of_grid_models_are_those_of_the_cpu(images, boxes, kind, precision):
    """With deformable convolutions."""

    def make(device, precision):
        config = ExtractorConfig(str(GRID_CONFIG), GRID_SLIM, RANDOM_WEIGHTS, choose(kind, boxes), precision=precision)
        return Extractor.from_config(config, device)

    extractor = make("cuda", precision)
    extract(extractor, images[:2])
    with at_most(WAITS[8], f"extraction, grid model, {kind}, {precision}, batch size 8", 6):
        found = extract(extractor, images[2:8])
    for image_id, regions in extract(make("cpu", "fp32"), images[2:4]).items():
        compare(found[image_id], regions, kind, precision)


@pytest.mark.parametrize(("kind", "limit"), [("regressed", 12), ("boxes", 8)])
def test_features_of_vinvl_are_those_of_the_cpu(images, boxes, kind, limit):
    config = ExtractorConfig(str(VINVL_CONFIG), VINVL_SLIM, RANDOM_WEIGHTS, choose(kind, boxes))
    extractor = Extractor.from_config(config, "cuda")
    extract(extractor, images[:1])
    with at_most(limit, f"extraction, VinVL, {kind}", 3):
        found = extract(extractor, images[1:4])
    for image_id, regions in extract(Extractor.from_config(config, "cpu"), images[1:2]).items():
        compare(found[image_id], regions, kind, "fp32")
        assert_same_values(found[image_id].attribute_scores, regions.attribute_scores)


def compare(found, expected, kind: str, precision: str) -> None:
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.features.dtype == np.float32
    if kind in ("boxes", "grid"):
        assert_same_values(found.boxes, expected.boxes)
        (assert_same_values if precision == "fp32" else assert_same_direction)(found.features, expected.features)
    elif precision == "fp32":
        # On a GPU, two proposals of nearly the same score may change places, which may change the last regions.
        distance = np.abs(found.boxes[:, None] - expected.boxes).max(axis=2)
        same = distance.min(axis=1) < 0.05
        assert same.mean() >= (1 if PRETENDED else 0.8)
        nearest = distance.argmin(axis=1)[same]
        assert_same_values(found.features[same], expected.features[nearest])
        if found.object_ids is None:  # the format has no labels
            return
        assert_same_values(found.object_scores[same], expected.object_scores[nearest])
        assert (found.object_ids[same] == expected.object_ids[nearest]).mean() >= (1 if PRETENDED else 0.95)
    else:
        assert 5 <= len(found) <= 20
        assert np.isfinite(found.features).all()


def test_from_files_to_a_file(images, weights, tmp_path):
    folder = Path(images[0].path).parent
    for device in ("cpu", "cuda"):
        given = ["--config-file", CONFIG, "--weights", weights, "--images", folder, "--output", tmp_path / device]
        given += ["--format", "flat", "--device", device, "--min-boxes", 5, "--max-boxes", 20]
        assert load_script("tools/extract.py").main([*map(str, given), *SLIM]) == 0
    found, expected = open_features(tmp_path / "cuda"), open_features(tmp_path / "cpu")
    assert set(found) == set(expected)
    assert len(found) == len(images)
    for image_id in list(found)[:3]:
        compare(found[image_id], expected[image_id], "regions", "fp32")


def test_coco_images(shared_data, weights):
    """Images as they come: of ten sizes, which the network cannot put into one batch."""
    paths = sorted((shared_data / "images").glob("*.jpg"))
    images = [ImageFile(str(path), path.stem) for path in paths]
    extractor = make_extractor(weights, RegionChoice(10, 100), "cuda", "fp32", 8)
    extract(extractor, images[:2])
    with at_most(WAITS[8], "extraction, COCO images, batch size 8", 8):
        found = extract(extractor, images[2:])
    expected = extract(make_extractor(weights, RegionChoice(10, 100), "cpu", "fp32", 1), images[2:5])
    for image_id, regions in expected.items():
        compare(found[image_id], regions, "regions", "fp32")


def test_random_weights_whose_classes_are_all_alike(images):
    extractor = make_extractor(RANDOM_WEIGHTS, RegionChoice(), "cuda", "fp32", 8)
    extract(extractor, images[:FIRST])
    with at_most(WAITS[8], "extraction, all classes alike, batch size 8", len(images) - FIRST):
        assert all(len(regions) >= 10 for regions in extract(extractor, images[FIRST:]).values())
