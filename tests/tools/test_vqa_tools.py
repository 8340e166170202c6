"""The tools of question answering, one after the other, on a world that an oracle sees."""

import json
import sys
from pathlib import Path

import pytest
import torch
from script_loading import load_script

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "vqa"))
from toy_questions import write_world  # noqa: E402  it lies beside the tests of the models

TRAIN = ["tools/train_vqa.py", "--config-file", str(ROOT / "configs" / "vqa" / "shapes_updown.yaml")]
SETTINGS = ["MODEL.UPDOWN.HIDDEN_DIM", "16", "SOLVER.IMS_PER_BATCH", "32", "SOLVER.EPOCHS", "2", "MODEL.DEVICE", "cpu"]


def run(path: str, *args) -> int:
    return load_script(path).main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, {"train": 60, "val": 15, "test": 10})
    assert run("datasets/prepare_vqa.py", "--root", root / "vqa", "--output", root / "prepared", "--min-count", 1) == 0
    return root


def settings(world: Path, output: Path) -> list[str]:
    features = f"('{world / 'features.flat'}',)"
    return [*SETTINGS, "DATA.FOLDER", world / "prepared", "DATA.FEATURES", features, "OUTPUT_DIR", output]


@pytest.fixture(scope="module")
def trained(world) -> Path:
    for name, more in (("one", []), ("two", ["SEED", 5]), ("blind", ["DATA.LOOK", False])):
        assert run(*TRAIN, *settings(world, world / name), *more) == 0
    return world / "one" / "model_best.pth"


def prediction(world: Path, output: Path, *models) -> list:
    data = ["--folder", world / "prepared", "--split", "test", "--features", world / "features.flat"]
    return ["tools/predict_vqa.py", "--vqa", *models, *data, "--output", output]


def test_from_training_to_a_table(world, trained, tmp_path, capsys):
    runs = {"one": [trained], "blind": [world / "blind" / "model_best.pth"]}
    runs["ensemble"] = [trained, world / "two" / "model_best.pth"]
    for name, models in runs.items():
        assert run(*prediction(world, tmp_path / "new" / f"{name}.json", *models)) == 0
    annotations = world / "vqa" / "v2_mscoco_test2015_annotations.json"
    questions = world / "vqa" / "v2_OpenEnded_mscoco_test2015_questions.json"
    files = [tmp_path / "new" / f"{name}.json" for name in runs]
    capsys.readouterr()
    official = ["--annotations", annotations, "--questions", questions]
    assert run("tools/eval_vqa.py", "--results", *files, *official) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["percent", "one", "blind", "ensemble"]
    asked = json.loads(questions.read_text())["questions"]
    answers = json.loads(files[0].read_text())
    assert [item["question_id"] for item in answers] == [item["question_id"] for item in asked]


def test_a_run_is_not_overwritten_and_goes_on(world, trained, capsys):
    assert run(*TRAIN, *settings(world, world / "one")) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert run(*TRAIN, "--resume", *settings(world, world / "one"), "SOLVER.EPOCHS", 3) == 0
    assert "resumed" in capsys.readouterr().out


def test_two_processes(world, tmp_path):
    more = ["SOLVER.EPOCHS", 1, "DATA.TRAIN", "('val',)"]
    assert run(*TRAIN, "--num-gpus", 2, *settings(world, tmp_path / "run"), *more) == 0
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=False)
    assert len(saved["random"]) == 2
    lines = map(json.loads, (tmp_path / "run" / "metrics.json").read_text().splitlines())
    assert sum("soft_score" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "gpu", "--device is 'gpu', which is not a device"),
        ("--batch-size", 0, "--batch-size is 0; it must be 1 or more"),
    ],
)
def test_bad_options_of_prediction_are_named(world, trained, tmp_path, capsys, option, value, message):
    assert run(*prediction(world, tmp_path / "results.json", trained), option, value) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_features_that_lack_images(world, trained, tmp_path, capsys):
    write_world(tmp_path / "few", {"train": 80})
    arguments = prediction(world, tmp_path / "results.json", trained)
    arguments[arguments.index("--features") + 1] = tmp_path / "few" / "features.flat"
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "lacks 5 of the 10 images of" in error
    assert ": 81, 82, 83" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results.json").exists()
