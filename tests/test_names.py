"""The names that others rely on, where they look for them."""

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "bua.modeling": ("build_detector", "Detector"),
    "bua.modeling.anchors": ("cell_anchors", "grid_anchors"),
    "bua.modeling.boxes": ("encode_boxes", "decode_boxes", "clip_boxes", "pairwise_iou", "nms"),
    "bua.modeling.rpn": ("select_proposals",),
    "bua.extraction": ("select_regions", "extract"),
    "bua.features": ("open_features", "convert_features"),
    "bua.checkpoint": ("load_checkpoint",),
    "bua.detection.evaluation": (
        "VisualGenomeEvaluator",
        "average_precision",
    ),
    "bua.vqa": ("BAN", "UpDown", "vqa_accuracy"),
    "bua.captioning": ("UpDownCaptioner", "caption_scores"),
    "bua.grounding": ("BANGrounding", "grounding_recall"),
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_is_there(module, name):
    assert callable(getattr(importlib.import_module(module), name))


def test_heads_do_not_import_the_detector():
    """They live on regions, whoever found them; importing torchvision takes as long as importing torch."""
    code = "import sys, bua.vqa, bua.captioning, bua.grounding; print('bua.modeling.detector' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
