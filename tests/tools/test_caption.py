"""tools/caption.py with the real detector, a few channels wide, and a captioner that has learned nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_loading import load_script

from bua.captioning.config import build_model, get_cfg
from bua.captioning.from_image import caption
from bua.captioning.inference import Captioner
from bua.captioning.vocabulary import CaptionVocabulary
from bua.checkpoint import save_checkpoint
from bua.errors import InputError
from bua.extraction.extractor_config import RANDOM_WEIGHTS, RegionChoice
from bua.extraction.image_detector import ImageDetector, open_detector

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "shapes.yaml")
SLIM = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RPN.CONV_DIMS", "[8]"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "160"),
]
VOCABULARY = CaptionVocabulary([".", "<unk>", "a", "cat", "on", "mat"])


def main(*arguments) -> int:
    return load_script("tools/caption.py").main([*map(str, arguments)])


def make_captioner(dim: int) -> Captioner:
    cfg = get_cfg()
    cfg.DATA.MAX_LENGTH, cfg.DATA.BOXES, cfg.MODEL.UPDOWN.INITIAL_STD = 4, True, 0.8
    for key in ("HIDDEN_DIM", "EMBEDDING_DIM", "ATTENTION_DIM"):
        cfg.MODEL.UPDOWN[key] = 8
    torch.manual_seed(0)
    return Captioner(build_model(cfg, VOCABULARY, dim).eval(), cfg, dim, VOCABULARY)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return make_captioner(128)


@pytest.fixture(scope="module")
def detector() -> ImageDetector:
    choice = RegionChoice(min_boxes=4, max_boxes=8)
    return open_detector(RANDOM_WEIGHTS, config_file=CONFIG, overrides=SLIM, choice=choice)


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "cat.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    return path


def test_from_a_call(captioner, detector, image):
    found = caption(image, detector=detector, captioner=captioner)
    assert 4 <= len(found.regions) <= 8
    assert len(found.captions) <= 5
    best = found.captions[0]
    assert best.text == " ".join(best.words)
    assert set(best.words) <= {"a", "cat", "on", "mat"}
    assert best.attention.shape == (len(best.words), len(found.regions))
    assert found.strip.ndim == 3
    assert found.strip.dtype == np.uint8


def test_the_tool_prints_and_draws(captioner, detector, image, tmp_path, capsys):
    checkpoint, output = tmp_path / "captioner.pth", tmp_path / "new"
    save_checkpoint(checkpoint, model=captioner.model.state_dict(), **captioner.describe())
    other = tmp_path / "dog.png"
    other.write_bytes(cv2.imencode(".png", np.full((40, 40, 3), 99, np.uint8))[1])
    given = [
        "--config-file",
        CONFIG,
        "--detector",
        "random",
        "--captioner",
        checkpoint,
        "--beam",
        2,
        "--output",
        output,
    ]
    given += ["--min-boxes", 4, "--max-boxes", 8]
    assert main(*SLIM, *given, "--image", image, other) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = caption(image, detector=detector, captioner=checkpoint, overrides=["DECODING.BEAM", "2"]).captions
    assert lines[0] == f"{image}: {expected[0].text}"
    assert lines[1:3] == [f"  {one.score:8.2f}  {one.text}" for one in expected]
    assert lines[3] == f"  the model's attention: {output / 'cat_caption.jpg'}"
    for name in ("cat", "dog"):
        assert cv2.imread(str(output / f"{name}_caption.jpg")) is not None
    assert main(image, other, *SLIM, *given) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_beam_without_width(capsys):
    assert main("--image", "a.jpg", "--beam", 0) == 2
    assert "--beam is 0; give 1 or more" in capsys.readouterr().err


def test_what_cannot_be_captioned(captioner, detector, tmp_path, image):
    with pytest.raises(InputError, match=r"none\.jpg"):
        caption(tmp_path / "none.jpg", detector=detector, captioner=captioner)
    with pytest.raises(InputError, match=r"feature dimension is 128, but the model .* of dimension 64"):
        caption(image, detector=detector, captioner=make_captioner(64))
