"""Tests of tools/convert_checkpoint.py with slim detectors in different layouts."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from script_loading import load_script

from bua.checkpoint import identify, load_checkpoint, load_weights, save_checkpoint
from bua.config import load_cfg
from bua.detection.description import describe_detector
from bua.errors import InputError
from bua.io.files import exclusive
from bua.modeling import build_detector
from bua.modeling.anchors import cell_anchors
from bua.modeling.boxes import pairwise_iou
from bua.weights.export import write_weights
from bua.weights.layouts import ANCHORS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "weights"))
import released_layouts as released  # noqa: E402  this module is in the folder of the tests of the layouts

CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  RESNETS: {{DEPTH: 50, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4}}
  RPN: {{CONV_DIMS: [16]}}
  ROI_HEADS: {{NUM_CLASSES: 7}}
  BUA:
    BOX_CONVENTION: {convention}
    ATTRIBUTES: {{NUM_CLASSES: 5, EMBEDDING_DIM: 16, HIDDEN_DIM: 32, NO_ATTRIBUTE_CLASS: {no_attribute}}}
"""


@pytest.fixture(scope="module")
def main():
    return load_script("tools/convert_checkpoint.py").main


def write_config(path: Path, convention: str = "detectron2", no_attribute: bool = True) -> str:
    base = ROOT / "configs" / "vg_r101.yaml"
    path.write_text(CONFIG.format(base=base, convention=convention, no_attribute=no_attribute))
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, torch.Tensor]:
    config = write_config(tmp_path_factory.mktemp("config") / "slim.yaml")
    torch.manual_seed(0)
    return {name: torch.rand_like(value) for name, value in build_detector(load_cfg(config)).state_dict().items()}


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_a_released_detector_is_converted_to_buas_layout(main, weights, tmp_path, capsys):
    released.save_caffemodel(tmp_path / "a.caffemodel", released.caffe(weights, 50))
    assert main([str(tmp_path / "a.caffemodel"), str(tmp_path / "a.pth"), "--to", "bua"]) == 0
    assert "in the layout `caffe`" in capsys.readouterr().out
    assert identify(tmp_path / "a.pth").name == "bua"
    anchors = cell_anchors(released.SIZES, released.RATIOS, "caffe")
    assert_same(load_checkpoint(tmp_path / "a.pth"), weights | {ANCHORS: anchors})
    # The file still contains its anchors, and thereby its box convention.
    detector = build_detector(load_cfg(write_config(tmp_path / "other.yaml", "detectron2")))
    assert load_weights(detector, tmp_path / "a.pth", allow_missing=True).reshaped


def test_the_configuration_is_the_one_that_the_checkpoint_holds(main, weights, tmp_path):
    config = write_config(tmp_path / "slim.yaml", "caffe")
    described = describe_detector(load_cfg(config), list("abcdefg"), list("vwxyz"))
    save_checkpoint(tmp_path / "plain.pth", model=weights)
    save_checkpoint(tmp_path / "described.pth", model=weights, detector=described.state())
    to = ["--to", "huggingface"]
    assert main([str(tmp_path / "plain.pth"), str(tmp_path / "a.bin"), *to, "--config-file", config]) == 0
    assert main([str(tmp_path / "described.pth"), str(tmp_path / "b.bin"), *to]) == 0
    assert_same(load_checkpoint(tmp_path / "b.bin"), load_checkpoint(tmp_path / "a.bin"))


def test_a_detector_of_bua_is_converted_to_hugging_faces_layout(main, weights, tmp_path):
    save_checkpoint(tmp_path / "model_final.pth", model=weights, iteration=1)
    config = write_config(tmp_path / "slim.yaml")
    target = tmp_path / "pytorch_model.bin"
    assert main([str(tmp_path / "model_final.pth"), str(target), "--to", "huggingface", "--config-file", config]) == 0
    assert_same(torch.load(target, weights_only=True), released.airsplay(weights))
    assert main([str(target), str(tmp_path / "back.pth"), "--to", "bua"]) == 0
    back = load_checkpoint(tmp_path / "back.pth")
    back.pop(ANCHORS)
    assert_same(back, weights)


def test_detectron2_loads_a_converted_pickle(main, weights, tmp_path):
    torch.save(released.airsplay(weights), tmp_path / "pytorch_model.bin")
    assert main([str(tmp_path / "pytorch_model.bin"), str(tmp_path / "a.pkl"), "--to", "detectron2"]) == 0
    with open(tmp_path / "a.pkl", "rb") as file:
        content = pickle.load(file)
    assert content["__author__"] == "bua"
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    detectron2 = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = detectron2.get_cfg()
    cfg.merge_from_list(
        [
            *["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8],
            *["MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.MASK_ON", False],
            *["MODEL.ANCHOR_GENERATOR.SIZES", [list(released.SIZES)], "MODEL.RPN.CONV_DIMS", [16]],
            *["MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 7],
        ]
    )
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "a.pkl"))
    state = model.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in state if not name.startswith("pixel_"))


def test_anchors_are_put_into_detectron2s_order(main, weights, tmp_path, capsys):
    released.save_caffemodel(tmp_path / "a.caffemodel", released.caffe(weights, 50))
    assert main([str(tmp_path / "a.caffemodel"), str(tmp_path / "a.bin"), "--to", "huggingface"]) == 0
    assert "regions differ slightly" in capsys.readouterr().out
    converted = load_checkpoint(tmp_path / "a.bin")
    anchors = converted.pop(ANCHORS)
    torch.testing.assert_close(anchors, cell_anchors(released.SIZES, released.RATIOS, "detectron2"))
    caffe = cell_anchors(released.SIZES, released.RATIOS, "caffe")
    nearest = pairwise_iou(anchors + 8, caffe, "detectron2").argmax(dim=1)
    assert sorted(nearest.tolist()) == list(range(12))
    for name, value in weights.items():
        if name.startswith((f"{released.RPN}objectness", f"{released.RPN}anchor_deltas")):
            value = value.unflatten(0, (12, -1))[nearest].flatten(0, 1)
        torch.testing.assert_close(converted[name], value, rtol=1e-5, atol=1e-6)


def test_weights_that_cannot_be_converted_are_reported(main, weights, tmp_path, capsys):
    def assert_error(message, *args):
        assert main([str(arg) for arg in args]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert message in lines[0]

    own, target = tmp_path / "model_final.pth", tmp_path / "a.bin"
    save_checkpoint(own, model=weights)
    to_huggingface = ["--to", "huggingface"]
    assert_error("does not say which anchors it was trained with", own, target, *to_huggingface)
    config = write_config(tmp_path / "without.yaml", no_attribute=False)
    assert_error("has no class for `no attribute`", own, target, *to_huggingface, "--config-file", config)
    torch.save({"model": released.grid_feats(weights)}, tmp_path / "d2.pth")
    assert_error("has no class for `no attribute`", tmp_path / "d2.pth", target, *to_huggingface)
    shapes = ROOT / "configs" / "shapes.yaml"
    assert_error("not those of the configuration", own, target, *to_huggingface, "--config-file", shapes)
    released.save_pickle(tmp_path / "R-50.pkl", released.caffe2(weights, 50))
    assert_error("lacks roi_heads", tmp_path / "R-50.pkl", target, *to_huggingface)
    assert_error("no such checkpoint file", tmp_path / "none.pth", target, *to_huggingface)
    assert_error("its folder does not exist", own, tmp_path / "none" / "a.bin", *to_huggingface)
    assert_error("exists already; remove it", own, own, "--to", "bua")
    assert not target.exists()


@pytest.mark.parametrize("layout", ["bua", "detectron2", "huggingface"])
def test_a_model_of_a_task_is_refused(main, tmp_path, capsys, layout):
    save_checkpoint(tmp_path / "vqa.pth", model={"embedding.words.weight": torch.zeros(3, 2)}, feature_dim=4)
    assert main([str(tmp_path / "vqa.pth"), str(tmp_path / "out.pth"), "--to", layout]) == 2
    assert "vqa.pth: is not a detector; a task's model that bua trained needs no conversion" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_two_conversions_do_not_write_one_file(main, tmp_path, capsys):
    with exclusive(tmp_path / "out.pth"):
        assert main([str(tmp_path / "any.pth"), str(tmp_path / "out.pth"), "--to", "bua"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'out.pth'}: process {os.getpid()} on ")
    assert "is writing to it; wait until it is done" in error


@pytest.mark.parametrize("name", ["detector.pth", "detector.pkl"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, name):
    (tmp_path / f"{name}.tmp").symlink_to("/dev/full")  # each write to this device fails as on a full disk
    with pytest.raises(InputError, match=f"{name}: cannot be written: .*; free space, or name another file"):
        write_weights(tmp_path / name, {"weight": torch.zeros(10_000)})
    assert not list(tmp_path.iterdir())
