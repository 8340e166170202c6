"""Compares Detectron2's engine with the golden data, which the original's functions and the public port computed."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_proposal_generator
from detectron2.structures import ImageList

import bua.d2
from bua.checkpoint import load_weights
from bua.io.images import Resize, read_image

PORT = [
    *["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.RPN.CONV_DIMS", "[128]", "MODEL.BUA.FREEZE", "[]"],
    *["MODEL.RPN.PRE_NMS_TOPK_TEST", "2000", "MODEL.RPN.POST_NMS_TOPK_TEST", "100"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "120", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "40"],
    *["MODEL.BUA.ATTRIBUTES.EMBEDDING_DIM", "64", "MODEL.BUA.ATTRIBUTES.HIDDEN_DIM", "128"],
    *["MODEL.WEIGHTS", "", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0"],
]


def assert_close(actual, expected):
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_every_stage_agrees_with_the_public_port(shared_data):
    folder = shared_data / "golden" / "frcnn_slim"
    golden = np.load(folder / "outputs.npz")
    model = build_model(bua.d2.load_cfg("configs/vg_r101_frcnn.yaml", PORT)).eval()
    load_weights(model, folder / "pytorch_model.bin")
    seen = {}
    for name in ("backbone", "proposal_generator.rpn_head", "roi_heads.box_predictor"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output})
        )
    image = Resize(240, 400, "caffe")(read_image(shared_data / "images" / str(golden["image"])))
    inputs = {"image": image.image, "width": image.width, "height": image.height, "scale": image.scale}
    pixels = model.preprocess_image([inputs]).tensor
    np.testing.assert_allclose(pixels[0, :, :8, :8].permute(1, 2, 0), golden["input_top_left"], atol=1e-4)
    with torch.no_grad():
        predictions = model([inputs])[0]["objects"]
    assert seen["backbone"]["res4"].shape == tuple(golden["res4_shape"])
    rows, columns = golden["res4_shape"][-2:]
    objectness, deltas = seen["proposal_generator.rpn_head"]
    assert_close(objectness.view(rows, columns, 12).permute(2, 0, 1), golden["objectness_logits"])
    deltas = deltas.view(rows, columns, 12, 4).permute(2, 3, 0, 1)
    assert_close(deltas.reshape(48, rows, columns), golden["anchor_deltas"])
    assert_close(predictions.proposals * np.float32(image.scale[0]), golden["proposals"])
    assert_close(predictions.features, golden["proposal_features"])
    logits, box_deltas = seen["roi_heads.box_predictor"]
    assert_close(logits, golden["object_logits"])
    assert_close(box_deltas, golden["box_deltas"])
    attribute_logits = torch.from_numpy(golden["attribute_logits"])
    assert_close(predictions.attribute_probs, attribute_logits.softmax(1)[:, :-1].numpy())


@pytest.mark.parametrize(("case", "limits"), [("test", (6000, 300)), ("small", (6000, 300)), ("train", (12000, 2000))])
def test_proposals_agree_with_the_original(shared_data, monkeypatch, case, limits):
    golden = np.load(shared_data / "golden" / "caffe_ops.npz")
    probs = torch.from_numpy(golden[f"rpn_{case}_fg_prob"][0])
    num_anchors, rows, columns = probs.shape
    deltas = torch.from_numpy(golden[f"rpn_{case}_deltas"][0]).view(num_anchors, 4, rows, columns)
    height, width, scale = golden[f"rpn_{case}_im_info"].tolist()
    overrides = ["MODEL.RPN.PRE_NMS_TOPK_TEST", str(limits[0]), "MODEL.RPN.POST_NMS_TOPK_TEST", str(limits[1])]
    cfg = bua.d2.load_cfg("configs/vg_r101.yaml", overrides)
    generator = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)}).eval()
    outputs = (probs.permute(1, 2, 0).flatten()[None], deltas.permute(2, 3, 0, 1).reshape(1, -1, 4))
    monkeypatch.setattr(generator.rpn_head, "forward", lambda features: outputs)
    images = ImageList(torch.zeros(1, 3, int(height), int(width)), [(int(height), int(width))])
    images.scales = [scale]
    with torch.no_grad():
        (proposals,), _ = generator(images, {"res4": torch.zeros(1, 8, rows, columns)})
    np.testing.assert_allclose(proposals.proposal_boxes.tensor, golden[f"rpn_{case}_rois"], atol=1.5e-4)
    np.testing.assert_array_equal(proposals.objectness_logits, golden[f"rpn_{case}_scores"])
