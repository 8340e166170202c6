"""The walk of docs/own_data.md, with the commands as they stand there, on drawn images in plain COCO form."""

import importlib.util
import json
import re
import shlex

import cv2
import numpy as np
import pytest
from script_loading import ROOT

from bua.checkpoint import read_checkpoint
from bua.commands import main
from bua.detection.description import read_description
from bua.features import open_features

DOCUMENT = (ROOT / "docs" / "own_data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for language, block in BLOCKS if not language for line in block.splitlines()]
(CONFIGURATION,) = [block for language, block in BLOCKS if language == "yaml"]
# A network that trains in seconds.
SMALL = """MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  RESNETS: {STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 4, RES2_OUT_CHANNELS: 16}
  RPN: {CONV_DIMS: [8], PRE_NMS_TOPK_TRAIN: 100, POST_NMS_TOPK_TRAIN: 20, PRE_NMS_TOPK_TEST: 50, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 8}
INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 96, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}
DATALOADER: {NUM_WORKERS: 0}
"""
SHORT = {"MAX_ITER: 5000": "MAX_ITER: 2", "STEPS: (3500, 4500)": "STEPS: (1,)"}
CATEGORIES = [{"id": 3, "name": "circle"}, {"id": 1, "name": "square"}, {"id": 7, "name": "bar"}]
ATTRIBUTES = ["red", "green", "blue", "large"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Forty drawn images with three classes and four attributes in a folder mine, and the configuration mine.yaml."""
    rng = np.random.default_rng(0)
    (tmp_path / "mine" / "images").mkdir(parents=True)
    trees = {name: {"images": [], "categories": CATEGORIES, "annotations": []} for name in ("train", "val")}
    for number in range(1, 41):
        image = np.full((60, 80, 3), 128, np.uint8)
        tree = trees["train" if number <= 30 else "val"]
        tree["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 80, "height": 60})
        for _ in range(2):
            x, y, width, height = (int(value) for value in rng.integers((0, 0, 10, 10), (50, 30, 30, 30)))
            cv2.rectangle(image, (x, y), (x + width, y + height), rng.integers(0, 255, 3).tolist(), -1)
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(rng.choice([3, 1, 7])),
                    "bbox": [x, y, width, height],
                    "attributes": rng.choice(ATTRIBUTES, 2, replace=False).tolist(),
                }
            )
        cv2.imwrite(str(tmp_path / "mine" / "images" / f"{number}.jpg"), image)
    for name, tree in trees.items():
        (tmp_path / "mine" / f"{name}.json").write_text(json.dumps(tree))
    text = CONFIGURATION.replace("_BASE_: vg_r50.yaml", f"_BASE_: {tmp_path / 'small.yaml'}")
    for long, short in SHORT.items():
        assert long in text
        text = text.replace(long, short)
    (tmp_path / "small.yaml").write_text("_BASE_: vg_r50.yaml\n" + SMALL)
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("engine", ["torch", "detectron2"])
def test_the_commands_train_draw_extract_and_evaluate(mine, engine, capsys):
    """Training, with the evaluation at its end, takes two processes, which must know the data sets, too; and so do the
    extraction and the evaluation alone, on the engine whose processes start faster."""
    if engine == "detectron2" and importlib.util.find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")
    assert [command[0] for command in COMMANDS] == ["train-net", "visualize", "extract", "train-net"]
    for number, command in enumerate(COMMANDS):
        more = ["--engine", engine] if command[0] == "train-net" else []
        more += ["--device", "cpu"] if command[0] == "extract" else []
        if command[0] != "visualize":
            more += ["--num-gpus", "2" if engine == "torch" or number == 0 else "1"]
        assert main([*command, *more]) == 0, command
    saved = read_description(read_checkpoint(mine / "output" / "mine" / "model_final.pth"))
    assert list(saved.objects) == ["square", "circle", "bar"]
    assert list(saved.attributes) == sorted(ATTRIBUTES)
    assert (mine / "output" / "mine" / "drawn" / "0001_1.jpg").is_file()
    assert len(open_features("output/mine/features.tsv")) == 40
    assert "MODEL.ROI_HEADS.NUM_CLASSES is set to 3, as in mine_train" in capsys.readouterr().out


def test_features_carry_the_names_of_the_classes(mine):
    assert main(["train-net", "--config-file", "mine.yaml", "--engine", "torch"]) == 0
    features = ["extract", "--detector", "output/mine/model_final.pth", "--images", "mine/images", "--device", "cpu"]
    assert main([*features, "--format", "flat", "--output", "features"]) == 0
    about = json.loads((mine / "features" / "header.json").read_text())["about"]
    assert about["object_vocabulary"] == ["square", "circle", "bar"]
    assert main([*features, "--format", "vinvl-tsv", "--output", "features.tsv"]) == 0


def test_data_without_attributes_trains_without_an_attribute_head(mine, capsys):
    for name in ("train", "val"):
        path = mine / "mine" / f"{name}.json"
        tree = json.loads(path.read_text())
        for annotation in tree["annotations"]:
            del annotation["attributes"]
        path.write_text(json.dumps(tree))
    assert main(["train-net", "--config-file", "mine.yaml", "--engine", "torch"]) == 0
    assert "MODEL.BUA.ATTRIBUTES.ENABLED is set to False, as in mine_train" in capsys.readouterr().out


def test_path_in_place_of_a_name(mine):
    (mine / "mine" / "train.json").rename(mine / "mine" / "images" / "train.json")
    command = ["train-net", "--config-file", "mine.yaml", "--engine", "torch", "DATASETS.TEST", "()"]
    assert main([*command, "DATASETS.TRAIN", "('mine/images/train.json',)"]) == 0


def test_the_configuration_may_be_given_again(mine):
    assert main(COMMANDS[0]) == 0
    assert main(["extract", "--config-file", "mine.yaml", "--min-boxes", "2", "--max-boxes", "3"]) == 0
    assert len(open_features("output/features/mine_mine_val.tsv")) == 10
    drawing = ["visualize", "--config-file", "mine.yaml", "--dataset", "mine_val", "--num", "2", "--output", "drawn"]
    assert main(drawing) == 0


@pytest.mark.parametrize("field", ["categories", "attributes"])
def test_data_sets_with_other_classes_are_refused(mine, capsys, field):
    for split in ("train", "val"):
        path = mine / "mine" / f"{split}.json"
        tree = json.loads(path.read_text())
        tree["attributes"] = [{"id": number, "name": name} for number, name in enumerate(ATTRIBUTES)]
        if split == "val":
            names = [entry["name"] for entry in tree[field]]
            tree[field] = [{**entry, "name": name} for entry, name in zip(tree[field], reversed(names))]
        path.write_text(json.dumps(tree))
    for more in ([], ["--eval-only"]):
        assert main([*COMMANDS[0], *more]) == 2
        assert f"mine_val: its {field} are not those of mine_train" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["torch", "detectron2"])
def test_a_detector_is_not_evaluated_on_other_classes(mine, engine, capsys):
    if engine == "detectron2" and importlib.util.find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")
    assert main([*COMMANDS[0], "--engine", engine]) == 0
    for split in ("train", "val"):
        path = mine / "mine" / f"{split}.json"
        tree = json.loads(path.read_text())
        tree["categories"][0]["name"] = "triangle"
        path.write_text(json.dumps(tree))
    assert main([*COMMANDS[0], "--engine", engine, "--eval-only"]) == 2
    assert "was trained on other objects than those of mine_val" in capsys.readouterr().err
