import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_loading import load_script

from bua.checkpoint import save_checkpoint
from bua.config import load_cfg
from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.modeling import build_detector
from bua.visualization import visualize
from bua.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "shapes.yaml")
OVERRIDES = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "3"]


def load_tool(name):
    return load_script(f"tools/{name}.py")


@pytest.fixture(scope="module")
def main():
    return load_tool("visualize").main


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes a folder of data sets with shapes_test, which has six grey images with two objects each."""
    root = tmp_path / "datasets"
    images = []
    for image_id in range(6):
        name = f"VG_100K/{image_id}.jpg"
        (root / "shapes" / "VG_100K").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "shapes" / name), np.full((90, 120, 3), 128, np.uint8))
        boxes = np.array([[10, 10, 40, 40], [60, 30, 110, 80]])
        images.append(ImageAnnotations(image_id, name, 120, 90, boxes, [0, 1], [[0], [1, 2]]))
    write_annotations(
        root / "shapes" / "annotations" / "shapes_test.json",
        images,
        Vocabulary(["circle", "star"]),
        Vocabulary(["red", "blue", "large"]),
    )
    for folder in (root / "shapes" / "vocab", tmp_path / "vocabulary"):
        folder.mkdir()
        Vocabulary(["circle", "star"]).write(folder / "objects_vocab.txt")
        Vocabulary(["red", "blue", "large"]).write(folder / "attributes_vocab.txt")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.pth", model=build_detector(load_cfg(CONFIG, OVERRIDES)).state_dict())
    return str(tmp_path / "model.pth")


def images(folder):
    return {path.name: cv2.imread(str(path)) for path in sorted(Path(folder).iterdir())}


def test_draws_annotations_evenly_over_the_data_set(main, world, capsys):
    out = str(world / "look")
    assert main(["--dataset", "shapes_test", "--what", "annotations", "--num", "3", "--output", out]) == 0
    drawn = images(out)
    assert list(drawn) == ["0001_0.jpg", "0002_2.jpg", "0003_5.jpg"]
    assert all(image.shape == (600, 800, 3) and (abs(image.astype(int) - 128) > 60).any() for image in drawn.values())
    assert f"3 images in {out}" in capsys.readouterr().out


def test_lists_the_relations_above_the_annotations(main, world, monkeypatch):
    listed = []
    add_text = visualize.add_text
    monkeypatch.setattr(
        visualize, "add_text", lambda image, lines, **more: listed.append(lines) or add_text(image, lines, **more)
    )
    monkeypatch.setattr(visualize, "MAX_RELATIONS", 2)
    path = world / "datasets" / "shapes" / "annotations" / "shapes_test.json"
    tree = json.loads(path.read_text())
    tree["relation_categories"] = [{"id": 0, "name": "left of"}, {"id": 1, "name": "near"}]
    tree["relations"] = [
        {
            "image_id": image_id,
            "subject_id": 2 * image_id + subject,
            "predicate_id": predicate,
            "object_id": 2 * image_id,
        }
        for image_id, subject, predicate in ((0, 1, 1), (5, 1, 0), (5, 1, 1), (5, 0, 1))
    ]
    path.write_text(json.dumps(tree))
    out = str(world / "look")
    assert main(["--dataset", "shapes_test", "--what", "annotations", "--num", "3", "--output", out]) == 0
    assert listed == [
        ["Relations:", "blue large star - near - red circle"],
        ["Relations:", "blue large star - left of - red circle", "blue large star - near - red circle", "and 1 more"],
    ]
    heights = [image.shape[0] for image in images(out).values()]
    assert heights[2] > heights[0] > heights[1] == 600


def test_draws_predictions_beside_annotations(main, world, weights):
    args = ["--dataset", "shapes_test", "--config-file", CONFIG, "--weights", weights, "--num", "1", "--threshold", "0"]
    assert main([*args, "--output", str(world / "both"), *OVERRIDES]) == 0
    assert main([*args, "--what", "predictions", "--output", str(world / "predictions"), *OVERRIDES]) == 0
    both, predictions = images(world / "both")["0001_0.jpg"], images(world / "predictions")["0001_0.jpg"]
    assert predictions.shape == (600, 800, 3)
    assert both.shape[1] > 2 * 800
    # Both halves have a title.
    titles = both[: both.shape[0] - 600]
    assert (titles[:, :800] < 100).any()
    assert (titles[:, -800:] < 100).any()
    right = both[-600:, -800:].astype(int)
    assert np.abs(right - predictions).mean() < 3


def test_draws_predictions_on_files_of_ones_own(main, world, weights):
    files = []
    for folder in ("a", "b"):
        (world / folder).mkdir()
        files.append(str(world / folder / "mine.png"))
        cv2.imwrite(files[-1], np.full((50, 70, 3), 90, np.uint8))
    args = ["--config-file", CONFIG, "--detector", weights, "--vocabulary", str(world / "vocabulary")]
    assert main([*args, "--output", str(world / "look"), *files, *OVERRIDES]) == 0
    assert main([*args, "--output", str(world / "again"), *OVERRIDES, "--images", *files]) == 0
    for folder in ("look", "again"):
        assert list(images(world / folder)) == ["0001_mine.jpg", "0002_mine.jpg"]


def test_images_alone_are_drawn_with_the_detector_of_the_package(main, world, capsys):
    cv2.imwrite(str(world / "mine.png"), np.full((50, 70, 3), 90, np.uint8))
    assert main([str(world / "mine.png"), "--device", "cpu", "--output", str(world / "look")]) == 0
    assert list(images(world / "look")) == ["0001_mine.jpg"]
    assert f"the drawing: {world / 'look' / '0001_mine.jpg'}" in capsys.readouterr().out


def test_an_empty_half_says_so(main, world, weights):
    args = ["--dataset", "shapes_test", "--config-file", CONFIG, "--weights", weights, "--num", "1", "--threshold", "1"]
    assert main([*args, "--output", str(world / "both"), *OVERRIDES]) == 0
    assert main([*args, "--what", "predictions", "--output", str(world / "predictions"), *OVERRIDES]) == 0
    both, predictions = images(world / "both")["0001_0.jpg"], images(world / "predictions")["0001_0.jpg"]
    # The strip with the line is above the image.
    assert predictions.shape[0] > 600
    assert both.shape[0] >= predictions.shape[0]
    assert (predictions[: predictions.shape[0] - 600] < 100).any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "shapes_tset", "--what", "annotations"], "did you mean shapes_test?"),
        (["--dataset", "shapes_train", "--what", "annotations"], "shapes_train is not prepared"),
        (["--what", "annotations"], "FILE: none given; name image files, or a data set"),
        (["--images", "gone.jpg", "--detector", "no.pth"], "gone.jpg: no such file"),
        (["--images", ".", "--detector", "no.pth"], ".: is a folder; name image files, such as ./*.jpg"),
        (["--dataset", "shapes_test", "--what", "annotations", "--num", "0"], "--num: is 0"),
        (["--dataset", "shapes_test", "--what", "annotations", "--detector", "x"], "--detector: has no effect"),
        (["--dataset", "shapes_test", "--what", "annotations", "--device", "cpu"], "--device: has no effect"),
        (["--dataset", "shapes_test", "--what", "both", "--images", "x.jpg"], "--dataset: image files have no"),
        (
            ["--dataset", "shapes_test", "--config-file", CONFIG, *OVERRIDES, "OUTPUT_DIR", "none"],
            "weights (--detector): none given",
        ),
        (["--dataset", "shapes_test", "--config-file", CONFIG, "--weights", "no.pth", *OVERRIDES], "no.pth: no such"),
        (["--dataset", "shapes_test", "--config-file", CONFIG, "--weights", "no.pth"], "no.pth: no such"),
    ],
)
def test_bad_input_is_one_line(main, world, capsys, args, message):
    assert main([*args[:2], "--output", str(world / "look"), *args[2:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (world / "look").exists()
