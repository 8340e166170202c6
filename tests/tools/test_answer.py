"""tools/answer.py with a detector and a model of random weights."""

import logging
from pathlib import Path

import cv2
import pytest
import torch
from script_loading import load_script

from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import open_detector
from bua.tasks.words import WordVocabulary
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.config import build_model, get_cfg
from bua.vqa.from_image import answer
from bua.vqa.inference import VqaModel

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = str(ROOT / "configs" / "shapes.yaml")


@pytest.fixture(scope="module")
def main():
    return load_script("tools/answer.py").main


def save_model(path: Path, feature_dim: int = 512) -> str:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.UPDOWN.HIDDEN_DIM", 8, "MODEL.UPDOWN.EMBEDDING_DIM", 8])
    words, answers = WordVocabulary(["what", "is", "it"]), AnswerVocabulary(["blot", "red", "yes"])
    torch.manual_seed(0)
    model = build_model(cfg, len(words), len(answers), feature_dim)
    torch.save({"model": model.state_dict(), **VqaModel(model, cfg, feature_dim, words, answers).describe()}, path)
    return str(path)


def arguments(image: str, vqa: str, *more: str) -> list[str]:
    options = ["--config-file", DETECTOR, "--detector", "random", "--max-boxes", "12", *more, "MODEL.DEVICE", "cpu"]
    return ["--image", image, "--question", "What is it?", "--vqa", vqa, *options]


def test_answers_and_draws(main, image, tmp_path, capsys):
    vqa = save_model(tmp_path / "vqa.pth")
    assert main(arguments(image, vqa, "--output", str(tmp_path / "new" / "where.png"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "expected accuracy  answer"
    assert sorted(line.split()[1] for line in lines[1:4]) == ["blot", "red", "yes"]
    scores = [float(line.split()[0]) for line in lines[1:4]]
    assert scores == sorted(scores, reverse=True)
    assert lines[4].endswith("where.png")
    assert cv2.imread(str(tmp_path / "new" / "where.png")).shape[0] >= 90
    # From Python it is the same.
    detector = open_detector("random", config_file=DETECTOR, device="cpu", choice=RegionChoice(max_boxes=12))
    found = answer(image, "What is it?", detector=detector, vqa=vqa)
    assert [f"{one.score:17.2f}  {one.text}" for one in found.answers] == lines[1:4]
    assert 10 <= len(found.regions) <= 12
    assert found.attention.shape == (len(found.regions),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image": "none.jpg"}, "none.jpg: no such file"),
        ({"--question": "Warum?"}, "none of its words"),
        ({"--min-boxes": "50"}, "need 0 <= min <= max"),
        ({"--detector": "none.pth"}, "none.pth"),
        ({"--vqa": "none.pth"}, "none.pth"),
    ],
)
def test_bad_input_is_one_line(main, image, tmp_path, capsys, change, message):
    given = arguments(image, save_model(tmp_path / "vqa.pth"), "--min-boxes", "10")
    for name, value in change.items():
        given[given.index(name) + 1] = value
    logging.disable(logging.WARNING)
    assert main(given) == 2
    logging.disable(logging.NOTSET)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_image_needs_no_option(main, image, tmp_path, capsys):
    given = arguments(image, save_model(tmp_path / "vqa.pth"), "--output", str(tmp_path / "drawn.png"))
    given.remove("--image")
    assert main(given) == 0
    assert "drawn.png" in capsys.readouterr().out
    assert main([*given, image]) == 2
    assert "FILE: 2 are given" in capsys.readouterr().err
    given.remove(image)
    assert main(given) == 2
    assert "FILE: none given; name an image file" in capsys.readouterr().err


def test_a_missing_image_is_found_before_models_are_loaded(main, image, tmp_path, capsys):
    given = arguments("none.jpg", "none.pth", "--detector", "none.pth")
    assert main(given) == 2
    assert "none.jpg: no such file" in capsys.readouterr().err


def test_a_detector_with_other_features(main, image, tmp_path, capsys):
    assert main(arguments(image, save_model(tmp_path / "vqa.pth", 64))) == 2
    assert (
        "random: the feature dimension is 512, but the model was trained on features of dimension 64"
        in capsys.readouterr().err
    )
