"""A detector with a feature pyramid, which only Detectron2 has: trained, extracted with, drawn and asked."""

import json

import cv2
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from script_loading import ROOT

from bua.checkpoint import read_checkpoint
from bua.commands import main
from bua.features import open_features
from bua.tasks.words import WordVocabulary
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.config import build_model, get_cfg
from bua.vqa.inference import VqaModel

CONFIG = str(ROOT / "configs" / "vg_r101_fpn.yaml")
SLIM = {
    "MODEL.WEIGHTS": "''",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.BASE_LR": 0.001,
}


@pytest.fixture
def trained(shapes, tmp_path, monkeypatch):
    """Trains for two iterations, with features after each, and returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    values = {**SLIM, "SOLVER.MAX_ITER": 2, "SOLVER.CHECKPOINT_PERIOD": 1, "OUTPUT_DIR": "run"}
    values |= {"MODEL.BUA.DUMP.OUTPUT": "dumped", "MODEL.BUA.DUMP.PERIOD": 1, "MODEL.BUA.DUMP.FORMAT": "flat"}
    values |= {"MODEL.BUA.DUMP.MIN_BOXES": 4, "MODEL.BUA.DUMP.MAX_BOXES": 6}
    overrides = shapes(**{key.replace(".", "__"): value for key, value in values.items()})
    assert main(["train-net", "--config-file", CONFIG, "--engine", "detectron2", *overrides]) == 0
    return tmp_path / "run"


def test_fpn_is_trained_extracted_drawn_and_asked(trained, shapes_root, capsys):
    weights, image = str(trained / "model_final.pth"), str(next((shapes_root / "shapes" / "VG_100K").glob("*.jpg")))
    capsys.readouterr()
    limits = ["--min-boxes", "4", "--max-boxes", "6", "--device", "cpu"]
    command = ["extract", "--detector", weights, *limits, "--format", "flat"]
    annotations = str(shapes_root / "shapes" / "annotations" / "shapes_test.json")
    assert (
        main([*command, "--images", annotations, "--image-root", str(shapes_root / "shapes"), "--output", "out"]) == 0
    )
    extracted = open_features("out")
    assert {regions.features.shape[1] for regions in extracted.values()} == {32}
    # What the training wrote at its end is the same; after the first iteration, the weights were others.
    for iteration, equal in ((2, True), (1, False)):
        dumped = open_features(f"dumped/shapes_test_{iteration:07d}")
        assert sorted(dumped) == sorted(extracted)
        for image_id, regions in extracted.items():
            of_dump = torch.from_numpy(dumped[image_id].features)
            same = of_dump.shape == regions.features.shape and torch.allclose(
                of_dump, torch.from_numpy(regions.features), rtol=1e-4, atol=1e-5
            )
            assert same == equal
    names = json.loads((trained.parent / "out" / "header.json").read_text())["about"]
    assert names["object_vocabulary"] == list(read_checkpoint(weights)["detector"]["objects"])

    assert main(["visualize", image, "--detector", weights, "--device", "cpu", "--threshold", "0"]) == 0
    assert "the drawing: " in capsys.readouterr().out

    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.UPDOWN.HIDDEN_DIM", 8, "MODEL.UPDOWN.EMBEDDING_DIM", 8])
    words, answers = WordVocabulary(["what", "is", "it"]), AnswerVocabulary(["blot", "red"])
    vqa = build_model(cfg, len(words), len(answers), 32)
    torch.save({"model": vqa.state_dict(), **VqaModel(vqa, cfg, 32, words, answers).describe()}, "vqa.pth")
    question = ["answer", "--image", image, "--question", "What is it?", "--vqa", "vqa.pth", "--output", "drawn.png"]
    assert main([*question, "--detector", weights, *limits]) == 0
    assert "expected accuracy" in capsys.readouterr().out
    assert cv2.imread("drawn.png") is not None
