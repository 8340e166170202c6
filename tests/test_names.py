"""The names that others may rely on, as listed in DESIGN.md, and the names and order of their parameters."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Mapping

import pytest

from bua.features import open_features, open_writer
from bua.modeling import Detector

# For each function the parameters that DESIGN.md lists, in their order; those after "*" are passed by keyword. The
# functions may have more parameters, which must have default values.
FUNCTIONS = {
    "bua.modeling.boxes.encode_boxes": "reference target weights convention",
    "bua.modeling.boxes.decode_boxes": "reference deltas weights convention",
    "bua.modeling.boxes.clip_boxes": "boxes height width convention",
    "bua.modeling.boxes.pairwise_iou": "a b convention",
    "bua.modeling.boxes.nms": "boxes scores iou_threshold convention",
    "bua.modeling.anchors.cell_anchors": "sizes aspect_ratios convention",
    "bua.modeling.anchors.grid_anchors": "cell height width stride",
    "bua.modeling.rpn.select_proposals": (
        "anchors objectness deltas height width * pre_nms_topk post_nms_topk nms_threshold min_size convention"
    ),
    "bua.modeling.build_detector": "cfg",
    "bua.extraction.select_regions": (
        "boxes class_probs * min_boxes max_boxes score_threshold nms_threshold convention"
    ),
    "bua.extraction.extract": "images output * config_file weights format min_boxes max_boxes",
    "bua.features.open_features": "path",
    "bua.features.convert_features": "source target format",
    "bua.checkpoint.load_checkpoint": "path_or_uri",
    "bua.detection.evaluation.average_precision": "detections ground_truth num_classes iou_threshold protocol",
    "bua.vqa.vqa_accuracy": "results annotations",
    "bua.captioning.caption_scores": "results references",
    "bua.grounding.grounding_recall": "",
}
DEFAULTS = {
    "bua.modeling.boxes.encode_boxes": {"weights": (1, 1, 1, 1)},
    "bua.modeling.boxes.decode_boxes": {"weights": (1, 1, 1, 1)},
    "bua.extraction.select_regions": {
        "min_boxes": 10,
        "max_boxes": 100,
        "score_threshold": 0.2,
        "nms_threshold": 0.3,
        "convention": "caffe",
    },
    "bua.detection.evaluation.average_precision": {"iou_threshold": 0.5, "protocol": "original"},
}
CLASSES = (
    "bua.modeling.Detector",
    "bua.detection.evaluation.VisualGenomeEvaluator",
    "bua.vqa.UpDown",
    "bua.vqa.BAN",
    "bua.captioning.UpDownCaptioner",
    "bua.grounding.BANGrounding",
)


def find(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_its_parameters(name):
    positional, _, by_keyword = FUNCTIONS[name].partition("*")
    parameters = inspect.signature(find(name)).parameters
    expected = positional.split()
    assert list(parameters)[: len(expected)] == expected
    assert all(parameters[parameter].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in expected)
    for parameter in by_keyword.split():
        assert parameters[parameter].kind is inspect.Parameter.KEYWORD_ONLY
    if FUNCTIONS[name]:
        listed = {*expected, *by_keyword.split()}
        others = [parameter for parameter in parameters.values() if parameter.name not in listed]
        assert all(parameter.default is not inspect.Parameter.empty for parameter in others)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_function_has_its_default_values(name):
    parameters = inspect.signature(find(name)).parameters
    assert {parameter: parameters[parameter].default for parameter in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_there(name):
    assert inspect.isclass(find(name))


def test_a_detector_predicts_from_a_list_of_images():
    assert list(inspect.signature(Detector.predict).parameters)[:2] == ["self", "images"]


def test_open_features_returns_a_mapping(tmp_path):
    with open_writer(tmp_path / "features", "flat") as writer:
        writer.finish()
    assert isinstance(open_features(tmp_path / "features"), Mapping)


def test_tasks_do_not_import_the_detector():
    """They only need regions, from any source; importing torchvision takes as long as importing torch."""
    code = "import sys, bua.vqa, bua.captioning, bua.grounding; print('bua.modeling.detector' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
