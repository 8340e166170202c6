"""VinVL's detector in extraction and in everything else that takes a detector, on a slim network."""

import base64
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from bua.app.shared_detector import SharedDetector
from bua.commands import main
from bua.config import load_cfg
from bua.detection.found_objects import detect_objects
from bua.errors import InputError
from bua.extraction import ExtractorConfig, RegionChoice, extract
from bua.extraction.class_names import class_names
from bua.extraction.extractor_config import settings_of
from bua.extraction.image_detector import open_detector
from bua.features import convert_features, open_features
from bua.features.encoding import decode_array
from bua.io.images import read_image
from bua.pipelines import pipeline
from bua.weights.zoo import VINVL_LABELS

CONFIG = """
_BASE_: vinvl_x152c4.yaml
MODEL:
  DEVICE: cpu
  RESNETS: {DEPTH: 50, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NUM_GROUPS: 2, WIDTH_PER_GROUP: 2}
  RPN: {CONV_DIMS: [8], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NUM_CLASSES: 7}
  BUA: {ATTRIBUTES: {NUM_CLASSES: 5, EMBEDDING_DIM: 4, HIDDEN_DIM: 6}}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 100}
"""
OBJECTS, ATTRIBUTES = [f"thing {number}" for number in range(7)], [f"colour {number}" for number in range(5)]
LABEL_MAP = {
    "label_to_idx": {name: number for number, name in enumerate(OBJECTS, 1)},
    "attribute_to_idx": {name: number for number, name in enumerate(ATTRIBUTES, 1)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration of a slim network, its names in VinVL's layout, and two images."""
    folder = tmp_path_factory.mktemp("vinvl")
    (folder / "slim.yaml").write_text(CONFIG)
    (folder / "names.json").write_text(json.dumps(LABEL_MAP))
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate([(80, 60, 3), (60, 100, 3)]):
        image = generator.integers(0, 256, size, dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    return open_detector("random", config_file=folder / "slim.yaml", vocabulary=folder / "names.json")


@pytest.fixture(scope="module")
def features(folder, run):
    """The features of the two images, as VinVL writes them."""
    assert run("vinvl.tsv", format="vinvl-tsv").done == 2
    return folder / "vinvl.tsv"


@pytest.fixture(scope="module")
def run(folder):
    def call(output, **options):
        options = {"config_file": folder / "slim.yaml", "vocabulary": folder / "names.json", **options}
        return extract(folder / "images", folder / output, weights="random", **options)

    return call


def test_images_are_written_with_names_and_places(features, folder, run):
    store = open_features(features)
    assert set(store) == {0, 1}
    assert store.about == {"object_vocabulary": OBJECTS, "attribute_vocabulary": ATTRIBUTES}
    rows = [json.loads(line.split(b"\t")[1]) for line in features.read_bytes().splitlines()]
    assert {one["class"] for row in rows for one in row["objects"]} <= set(OBJECTS)
    assert run("vinvl.tsv", format="vinvl-tsv").skipped == 2
    # As Oscar reads them, with the place of each box.
    convert_features(features, folder / "oscar.tsv", "oscar-tsv")
    for line in (folder / "oscar.tsv").read_bytes().splitlines():
        key, cell = line.split(b"\t")
        regions = store[int(key)]
        values = decode_array(json.loads(cell)["features"], np.dtype("<f4"), (len(regions), 64 + 6), "features")
        np.testing.assert_array_equal(values[:, :64], regions.features)
        x1, y1, x2, y2 = (regions.boxes / np.array([regions.width, regions.height] * 2)).T
        np.testing.assert_allclose(values[:, 64:].T, [x1, y1, x2, y2, x2 - x1, y2 - y1], atol=1e-6)


def test_given_boxes_get_the_features_of_the_same_proposals(features, run):
    summary = run("given", format="npz", boxes=features)
    proposed, given = open_features(features), open_features(summary.output)
    for image_id, regions in given.items():
        np.testing.assert_allclose(regions.features, proposed[image_id].features, atol=1e-4)
        assert len(regions.attribute_ids) == len(regions)


def test_other_settings_are_other_outputs(features, folder, run):
    with pytest.raises(InputError, match=r"VINVL\.NMS_FILTER"):
        run("vinvl.tsv", format="vinvl-tsv", overrides=["MODEL.BUA.VINVL.NMS_FILTER", "0"])
    with pytest.raises(InputError, match="NMS_FILTER 2 has no regressed boxes"):
        run("new.tsv", overrides=["MODEL.BUA.VINVL.NMS_FILTER", "2"], regressed=True)
    assert not (folder / "new.tsv").exists()
    with pytest.raises(InputError, match="oscar-tsv: has the place of each region"):
        run("new.tsv", format="oscar-tsv", overrides=["MODEL.BUA.VINVL.SPATIAL_FEATURES", "True"])
    # An output that was begun before these keys existed can be continued.
    config = ExtractorConfig("vg_r101.yaml", (), "random")
    assert not [key for key in settings_of(config, config.cfg("cpu"), "tsv") if "VINVL" in key or "DEFORM" in key]


def test_regressed_boxes_have_the_features_of_their_proposals(opened):
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    shared = SharedDetector(opened, replace(opened.choice, regressed=True))
    (proposed,), (regressed,) = opened.regions([image]), shared.regions([image])
    assert len(regressed) >= 10
    assert not np.isin(regressed.boxes, proposed.boxes).all()
    # The same regions may be in another order.
    distances = np.abs(regressed.features[:, None] - proposed.features).max(axis=2).min(axis=1)
    assert np.median(distances) < 1e-4


def test_places_can_be_a_part_of_the_features(features, run):
    summary = run(
        "places.tsv", format="vinvl-tsv", overrides=["MODEL.BUA.VINVL.SPATIAL_FEATURES", "True"], boxes=features
    )
    for regions in open_features(summary.output).values():
        assert regions.features.shape[1] == 64 + 6
        expected = regions.boxes / np.array([regions.width, regions.height] * 2)
        np.testing.assert_allclose(regions.features[:, 64:68], expected, atol=1e-6)
        np.testing.assert_allclose(regions.features[:, 68:], expected[:, 2:] - expected[:, :2], atol=1e-6)


def test_pipelines_take_the_detector(opened):
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found = pipeline("object-detection", detector=opened)(image, threshold=0.01, attribute_threshold=0)
    assert {one["label"] for one in found} <= set(OBJECTS)
    # Its own filter gives a region one class, and boxes are those of its demo. `bua visualize` draws the same.
    inputs = [opened.detector.prepare(np.ascontiguousarray(image[:, :, ::-1]))]  # pipelines take RGB
    choice = RegionChoice(min_boxes=0, score_threshold=0.01, regressed=True)
    (expected,) = opened.detector.choose(inputs, choice)
    assert [one["score"] for one in found] == expected.object_scores.tolist()
    (drawn,) = detect_objects(opened.detector, inputs, 0.01, attribute_threshold=0)
    np.testing.assert_array_equal([one.box for one in drawn], expected.boxes)
    assert [one.class_id for one in drawn] == expected.object_ids.tolist()
    assert [one.attributes[0] for one in drawn] == [*zip(expected.attribute_ids, expected.attribute_scores)]
    assert len(drawn[0].attributes) == 3
    features = pipeline("image-feature-extraction", detector=opened)(image, return_tensors=True)
    assert features.shape[2] == 64


def encoded(values):
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


@pytest.mark.parametrize("layout", ["vinvl", "oscar captioning", "oscar retrieval"])
def test_files_of_vinvl_and_oscar_are_references(folder, opened, tmp_path, capsys, layout):
    """The files are written as VinVL's program does (engine/inference.py), and as Oscar's readers take them."""
    reference, rows, sizes = tmp_path / "predictions.tsv", [], []
    for key in ("0", "1"):
        (found,) = opened.detector.detect([opened.detector.prepare(read_image(folder / "images" / f"{key}.png"))])
        width, height = {"0": (60, 80), "1": (100, 60)}[key]
        objects = [
            {"rect": box, "bbox_id": number, "class": OBJECTS[label], "conf": score, "feature": encoded(feature)}
            for number, (box, label, score, feature) in enumerate(
                zip(found.boxes.tolist(), found.classes, found.scores.tolist(), found.features)
            )
        ]
        x1, y1, x2, y2 = (found.boxes / torch.tensor([width, height, width, height])).T
        place = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], dim=1)
        features = encoded(torch.cat([found.features, place], dim=1))
        rows.append(
            {
                "vinvl": [key, json.dumps({"objects": objects, "relations": None})],
                "oscar captioning": [key, json.dumps({"num_boxes": len(objects), "features": features})],
                "oscar retrieval": [key, str(len(objects)), features],
            }[layout]
        )
        size = {"height": height, "width": width}
        # Oscar's retrieval has a file of labels beside the features, which has the sizes.
        labels = {"image_h": height, "image_w": width, "objects": objects}
        sizes.append([key, json.dumps(labels if layout == "oscar retrieval" else [size])])
    if layout == "oscar retrieval":
        reference = tmp_path / "features.tsv"
    size_file = tmp_path / ("predictions.tsv" if layout == "oscar retrieval" else "predictions.hw.tsv")
    for path, lines in ((reference, rows), (size_file, sizes)):
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    (tmp_path / "predictions.labelmap.json").write_text(json.dumps(LABEL_MAP))
    command = ["verify-features", "--detector", "random", "--config-file", str(folder / "slim.yaml")]
    command += ["--images", str(folder / "images"), "--reference", str(reference)]
    assert main(command) == 0
    assert "PASS: 2 images" in capsys.readouterr().out
    if layout == "vinvl":
        reference.write_text(reference.read_text().replace(OBJECTS[3], OBJECTS[4]).replace(OBJECTS[5], OBJECTS[6]))
        assert main(command) == 1
        assert "% of the regions have the reference's label" in capsys.readouterr().out


def test_names_come_from_a_file_beside_the_checkpoint(folder, tmp_path):
    cfg = load_cfg(folder / "slim.yaml")
    checkpoint = tmp_path / "vinvl_vg_x152c4.pth.tar"
    assert class_names(cfg, checkpoint, checkpoint) == (None, None)
    (tmp_path / VINVL_LABELS).write_text(json.dumps(LABEL_MAP))
    assert class_names(cfg, checkpoint, checkpoint) == (OBJECTS, ATTRIBUTES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attribute_to_idx": {}}, "has no 'label_to_idx'"),
        ({**LABEL_MAP, "label_to_idx": {"thing": 1}}, "1 classes, but the detector has 7"),
        ({"label_to_idx": {"thing": 2}}, "numbers from 1 on"),
        (None, "no such file"),
    ],
)
def test_a_file_of_names_that_does_not_fit_is_refused(folder, tmp_path, content, message):
    file = tmp_path / "names.json"
    if content is not None:
        file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        class_names(load_cfg(folder / "slim.yaml"), "random", "random", file)
