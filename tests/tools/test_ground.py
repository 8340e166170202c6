"""tools/ground.py with a detector and a model of random weights."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_loading import load_script

from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import open_detector
from bua.grounding.config import build_model, get_cfg
from bua.grounding.from_image import draw_phrases, ground
from bua.grounding.inference import GroundedPhrase, GroundingModel
from bua.tasks.words import WordVocabulary
from bua.visualization.draw import PALETTE

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = str(ROOT / "configs" / "shapes.yaml")
SENTENCE = "A red blot is left of a square."


@pytest.fixture(scope="module")
def main():
    return load_script("tools/ground.py").main


def save_model(path: Path, feature_dim: int = 512) -> str:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BAN.HIDDEN_DIM", 8, "MODEL.BAN.EMBEDDING_DIM", 8])
    words = WordVocabulary(["a", "red", "blot", "square", "is", "left", "of", "."])
    torch.manual_seed(0)
    grounding = GroundingModel(build_model(cfg, len(words), feature_dim), cfg, feature_dim, words, [*"BIIIOOOO"])
    torch.save({"model": grounding.model.state_dict(), **grounding.describe()}, path)
    return str(path)


def arguments(image: str, grounding: str, *more: str) -> list[str]:
    options = ["--config-file", DETECTOR, "--detector", "random", "--max-boxes", "12", *more, "MODEL.DEVICE", "cpu"]
    return ["--image", image, "--sentence", SENTENCE, "--grounding", grounding, *options]


def test_phrases_with_their_boxes(main, image, tmp_path, capsys):
    model = save_model(tmp_path / "ban.pth")
    assert main(arguments(image, model, "--output", str(tmp_path / "new" / "where.png"))) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith("where.png")
    # From Python it is the same.
    detector = open_detector("random", config_file=DETECTOR, device="cpu", choice=RegionChoice(max_boxes=12))
    found = ground(image, SENTENCE, detector=detector, grounding=model)
    assert [phrase.text for phrase in found.phrases] == ["a red blot", "a square"]
    for line, phrase in zip(lines, found.phrases, strict=True):
        x1, y1, x2, y2 = found.regions.boxes[phrase.region]
        assert line == f"{phrase.scores.max():6.1%}  {phrase.text} -> [{x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f}]"
    assert (cv2.imread(str(tmp_path / "new" / "where.png")) == found.drawing).all()


def test_brackets_say_which_phrases(main, image, tmp_path, capsys):
    given = arguments(image, save_model(tmp_path / "ban.pth"), "--output", str(tmp_path / "where.jpg"))
    given[given.index(SENTENCE)] = "[A red blot is left] of [a square]."
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%  ")[1].split(" ->")[0] for line in lines[:2]] == ["a red blot is left", "a square"]


def test_each_phrase_has_a_colour():
    boxes = np.array([[100, 100, 300, 300], [500, 500, 800, 900]], np.float32)
    phrases = [GroundedPhrase("it", 0, 1, row, box, np.ones(2, np.float32)) for row, box in enumerate(boxes)]
    drawn = draw_phrases(np.full((1000, 1000, 3), 255, np.uint8), phrases)
    assert drawn[300, 200].tolist() == list(PALETTE[0])
    assert drawn[900, 600].tolist() == list(PALETTE[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image": "none.jpg"}, "none.jpg: no such file"),
        ({"--sentence": "is left of"}, "no phrase in it"),
        ({"--sentence": "[a blot"}, "unmatched or nested brackets"),
        ({"--detector": "none.pth"}, "none.pth"),
        ({"--grounding": "none.pth"}, "none.pth"),
    ],
)
def test_bad_input_is_one_line(main, image, tmp_path, capsys, change, message):
    given = arguments(image, save_model(tmp_path / "ban.pth"))
    for name, value in change.items():
        given[given.index(name) + 1] = value
    logging.disable(logging.WARNING)
    assert main(given) == 2
    logging.disable(logging.NOTSET)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_detector_with_other_features(main, image, tmp_path, capsys):
    assert main(arguments(image, save_model(tmp_path / "ban.pth", 64))) == 2
    assert (
        "random: the feature dimension is 512, but the model was trained on features of dimension 64"
        in capsys.readouterr().err
    )
