"""The grid models of grid-feats-vqa, compared with what its own code computes, and with independent arithmetic."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bua.checkpoint import load_weights
from bua.config import load_cfg
from bua.detection.evaluation.detections import find_objects
from bua.errors import InputError
from bua.io.images import read_image
from bua.modeling import build_detector
from bua.modeling.backbone import BlockShape, DeformableBottleneck, DeformableConvNorm
from bua.modeling.losses import attribute_loss
from bua.modeling.optimize import optimize_for_inference
from bua.weights.export import to_huggingface
from bua.weights.layouts import LayoutError

GOLDEN_SLIM = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"],
    *["MODEL.BUA.ATTRIBUTES.EMBEDDING_DIM", "32", "MODEL.BUA.ATTRIBUTES.HIDDEN_DIM", "48"],
]
GRID_SLIM = [*GOLDEN_SLIM, "MODEL.RESNETS.RES2_OUT_CHANNELS", "24", "MODEL.ROI_BOX_HEAD.FC_DIM", "48"]
# The models of the golden data: the configuration, and what its README changes.
GOLDEN = {
    "grid_r50": ("grid_feats/r50.yaml", [*GRID_SLIM, "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]),
    "grid_x152pp": (
        "grid_feats/x152pp.yaml",
        [*GRID_SLIM, "MODEL.RESNETS.NUM_GROUPS", "4", "MODEL.RESNETS.WIDTH_PER_GROUP", "2"],
    ),
    "updn_r50": (
        "vg_r50.yaml",
        [*GOLDEN_SLIM, "MODEL.RESNETS.RES2_OUT_CHANNELS", "12", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"],
    ),
}
SLIM = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"],
    *["MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.NUM_GROUPS", "2", "MODEL.RESNETS.WIDTH_PER_GROUP", "2"],
    *["MODEL.ROI_BOX_HEAD.FC_DIM", "12", "MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.CONV_DIMS", "[16]", "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"],
]


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request, shared_data):
    """The name of a golden model, the detector with its weights, the prepared image, and what grid-feats-vqa
    computes."""
    config, overrides = GOLDEN[request.param]
    folder = shared_data / "golden" / "grid_feats" / request.param
    detector = build_detector(load_cfg(f"configs/{config}", overrides)).eval()
    assert not any(load_weights(detector, folder / "model.pth"))
    image = read_image(shared_data / "images" / "COCO_train2014_000000131486.jpg")
    return (
        request.param,
        optimize_for_inference(detector),
        detector.prepare(image, 131486),
        np.load(folder / "outputs.npz"),
    )


@pytest.fixture(scope="module")
def maps(golden):
    """The grid features, and the feature map that the other parts read."""
    _, detector, inputs, _ = golden
    with torch.inference_mode():
        return detector.grid([inputs])[0], detector.backbone(detector._stack([inputs]))


def test_feature_maps_are_those_of_grid_feats_vqa(golden, maps, shared_data):
    name, detector, inputs, expected = golden
    folder = shared_data / "golden" / "grid_feats"
    np.testing.assert_array_equal(inputs.image, np.load(folder / "input.npz")["image"])
    assert_close(detector._stack([inputs])[0, :, :8, :8], expected["network_image"], 1e-6)
    grid, feature_map = maps
    # A variance from which the epsilon is subtracted wrongly moves them by 1.3e-3 of the largest value.
    assert_close(grid[None], expected["grid_feature"])
    assert_close(grid[None], torch.load(folder / name / "131486.pth", weights_only=True))
    assert_close(feature_map, expected["res4_detect" if name == "updn_r50" else "res5_detect"])


def test_proposals_are_those_of_grid_feats_vqa(golden):
    """Each stage is compared for the golden input of the stage, so that ties are not decided otherwise."""
    name, detector, inputs, expected = golden
    feature_map = torch.from_numpy(expected["res4_detect" if name == "updn_r50" else "res5_detect"])
    rows, columns = feature_map.shape[-2:]
    rpn = detector.proposal_generator
    with torch.inference_mode():
        anchors, logits, deltas = rpn(feature_map)
        assert_close(logits.view(1, rows, columns, 15).permute(0, 3, 1, 2), expected["rpn_logits"])
        assert_close(deltas.view(1, rows, columns, 60).permute(0, 3, 1, 2), expected["rpn_deltas"])
        assert_close(rpn.anchor_generator.cell_anchors_0, expected["cell_anchors"], 1e-6)
        logits = torch.from_numpy(expected["rpn_logits"]).permute(0, 2, 3, 1).reshape(1, -1)
        deltas = torch.from_numpy(expected["rpn_deltas"]).permute(0, 2, 3, 1).reshape(1, -1, 4)
        ((boxes, objectness),) = rpn.propose(anchors, logits, deltas, [(943, 600)], [inputs.scale[0]])
    assert_close(objectness.sort().values, np.sort(expected["proposal_logits"]))
    distance = (boxes[:, None] - torch.from_numpy(expected["proposal_boxes"])).abs().amax(2)
    assert len(boxes) == 1000
    assert max(distance.amin(0).max(), distance.amin(1).max()) < 0.05


def test_heads_are_those_of_grid_feats_vqa(golden):
    name, detector, _, expected = golden
    feature_map = torch.from_numpy(expected["res4_detect" if name == "updn_r50" else "res5_detect"])
    boxes, heads = torch.from_numpy(expected["proposal_boxes"]), detector.roi_heads
    with torch.inference_mode():
        found = heads.describe(feature_map, [boxes], 16)
        logits, deltas = heads.box_predictor(found.features)
        attributes = heads.attribute_predictor(found.features[:64], logits[:64].argmax(1))
    assert_close(found.features, expected["roi_features"])
    assert_close(logits[:64], expected["class_logits"])
    assert_close(deltas[:16], expected["box_deltas"])
    assert_close(found.class_probs[:, :-1].amax(1), expected["object_prob"])
    assert_close(found.class_probs[:, -1], expected["background_prob"])
    np.testing.assert_array_equal(logits.argmax(1), expected["class_argmax"])
    # grid-feats-vqa does not use its attribute head for images; MILVLG gives it the best of all classes.
    assert_close(attributes, expected["attribute_logits"])
    assert_close(found.attribute_probs.amax(1), expected["attribute_prob"])
    np.testing.assert_array_equal(found.attribute_probs.argmax(1), expected["attribute_argmax"])


def test_detections_are_those_of_grid_feats_vqa(golden, maps, monkeypatch):
    _, detector, inputs, expected = golden
    monkeypatch.setattr(detector.backbone, "forward", lambda pixels: maps[1])
    (found,) = detector.infer([inputs])
    assert (found.width, found.height) == (407, 640)
    rows, classes = find_objects(
        found, convention="detectron2", nms_threshold=0.5, max_detections=100, score_threshold=0.05
    )
    boxes, scores = found.boxes[rows, classes], found.class_probs[rows, classes]
    # Detections with almost the same score may change places, and a few regions differ, where suppression was a tie.
    assert len(rows) == len(expected["detection_scores"])
    same = torch.from_numpy(expected["detection_classes"])[:, None] == classes
    same &= (torch.from_numpy(expected["detection_boxes"])[:, None] - boxes).abs().amax(2) < 0.1
    same &= (torch.from_numpy(expected["detection_scores"])[:, None] - scores).abs() < 1e-3
    assert same.any(1).float().mean() >= 0.98


@pytest.mark.parametrize(
    ("config", "released"),
    [("r50", "R-50-grid"), ("x101", "X-101-grid"), ("x152", "X-152-grid"), ("x152pp", "X-152-challenge")],
)
def test_parameters_at_the_released_size(config, released, request, monkeypatch):
    monkeypatch.setattr("bua.config.DEVICES", ("meta",))
    with torch.device("meta"):
        detector = build_detector(load_cfg(f"configs/grid_feats/{config}.yaml", ["MODEL.DEVICE", "meta"]))
    assert (detector.roi_heads.feature_dim, detector.backbone.out_channels) == (1024, 2048)
    shapes = request.getfixturevalue("shared_data") / "golden" / "grid_feats" / "shapes" / f"{released}.json"
    expected = json.loads(shapes.read_text())
    assert expected.pop("proposal_generator.anchor_generator.cell_anchors.0") == [15, 4]
    assert {released_name(name): list(value.shape) for name, value in detector.state_dict().items()} == expected


def released_name(name):
    return name.replace("cls_embedding", "obj_embed").replace("fc_attr", "fc.0")


@pytest.fixture(scope="module", params=["r50", "x152pp"])
def slim(request):
    """The configuration of a slim model, and the model with random weights and offsets."""
    cfg = load_cfg(f"configs/grid_feats/{request.param}.yaml", SLIM)
    torch.manual_seed(0)
    detector = build_detector(cfg).eval()
    for name, parameter in detector.named_parameters():
        if "conv2_offset" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return cfg, detector


def random_image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_the_grid_is_that_of_an_undilated_network(slim):
    cfg, detector = slim
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    undilated = build_detector(cfg).eval()
    undilated.load_state_dict(detector.state_dict())
    inputs = [detector.prepare(random_image())]
    (grid,) = detector.grid(inputs)
    assert grid.shape == (64, 3, 4)
    torch.testing.assert_close(grid, undilated.grid(inputs)[0])
    torch.testing.assert_close(grid, undilated.backbone(undilated._stack(inputs))[0].detach())
    with torch.no_grad():
        assert detector.backbone(detector._stack(inputs)).shape == (1, 64, 6, 8)
    assert [len(x.proposals) > 5 for x in undilated.infer(inputs)] == [True]


def test_the_optimised_detector_computes_the_same(slim):
    _, detector = slim
    fast = optimize_for_inference(detector)
    inputs = [detector.prepare(random_image(seed)) for seed in (1, 2)]
    boxes = [torch.tensor([[3.0, 4, 50, 41], [0, 0, 79, 59]]), torch.zeros(0, 4)]
    for found, expected in [
        *zip(fast.infer(inputs), detector.infer(inputs)),
        *zip(fast.infer(inputs, boxes), detector.infer(inputs, boxes)),
    ]:
        for field in ("proposals", "class_probs", "boxes", "features", "attribute_probs"):
            a, b = getattr(found, field), getattr(expected, field)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) if b.numel() else 0)
        assert found.features.shape[1] == 12
    for found, expected in zip(fast.grid(inputs), detector.grid(inputs)):
        assert_close(found, expected)
    nearly = optimize_for_inference(detector, precision="bf16")
    for found, expected in zip(nearly.grid(inputs), detector.grid(inputs)):
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999
    with pytest.raises(InputError, match="no part that is compiled"):
        optimize_for_inference(detector, compile=True)


def test_released_names_load(slim, tmp_path):
    cfg, detector = slim
    weights = {released_name(name): value for name, value in detector.state_dict().items()}
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = (
        detector.proposal_generator.anchor_generator.cell_anchors_0
    )
    torch.save({"model": weights, "optimizer": {}, "iteration": 89999}, tmp_path / "R-50.pth")
    other = build_detector(cfg)
    assert not any(load_weights(other, tmp_path / "R-50.pth"))
    for name, value in detector.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    with pytest.raises(LayoutError, match=r"lacks roi_heads\.res5\.0\.conv1\.weight"):
        to_huggingface(other.state_dict(), None)


def test_deformable_convolutions_move_their_samples():
    """An offset is that in y, then that in x, of each of the nine samples."""
    torch.manual_seed(0)
    conv = DeformableConvNorm(4, 6, 3, "FrozenBN", padding=1, groups=2)
    x = torch.randn(1, 4, 7, 9)
    plain = F.conv2d(x, conv.weight, padding=1, groups=2)
    offsets = torch.zeros(1, 9, 2, 7, 9)
    torch.testing.assert_close(conv(x, offsets.flatten(1, 2)), conv.norm(plain))
    offsets[:, :, 0], offsets[:, :, 1] = 2, 1
    moved = conv(x, offsets.flatten(1, 2))
    torch.testing.assert_close(moved[..., :4, :7], conv.norm(plain)[..., 2:6, 1:8])
    assert conv(x.bfloat16(), offsets.flatten(1, 2).bfloat16()).dtype == torch.bfloat16


def test_a_deformable_block_starts_as_an_ordinary_one():
    block = DeformableBottleneck(BlockShape(4, 8, 4, "BN", stride=2, stride_in_1x1=False))
    # Detectron2's order, in which optimisers number the parameters.
    assert [name for name, _ in block.named_children()] == ["shortcut", "conv1", "conv2_offset", "conv2", "conv3"]
    x = torch.randn(1, 4, 6, 6)
    conv = block.conv2
    out = F.relu(block.conv1(x))
    expected = F.conv2d(out, conv.weight, stride=2, padding=1)
    torch.testing.assert_close(conv(out, block.conv2_offset(out)), conv.norm(expected))
    assert block(x).shape == (1, 8, 3, 3)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("grid_feats/r50.yaml", "MODEL.RPN.IN_FEATURES", "['res4']"),
        ("grid_feats/r50.yaml", "MODEL.ROI_BOX_HEAD.NUM_FC", "0"),
        ("grid_feats/r50.yaml", "MODEL.RESNETS.DEFORM_MODULATED", "True"),
        ("grid_feats/r50.yaml", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[True, True]"),
        ("vg_r50.yaml", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]"),
        ("vg_r152_milvlg.yaml", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, True, False]"),
    ],
)
def test_what_the_engine_lacks_is_named(config, key, value):
    with pytest.raises(InputError, match=key):
        build_detector(load_cfg(f"configs/{config}", [key, value]))


def test_training_starts_from_a_backbone_of_imagenet(slim, tmp_path):
    """Also res5, which runs on regions in the other detectors."""
    cfg, detector = slim
    layers = ("stem.conv1.weight", "res4.1.conv2.norm.running_var", "res5.2.conv3.weight")
    weights = {name: torch.rand_like(detector.backbone.state_dict()[name]) for name in layers}
    torch.save(weights, tmp_path / "backbone.pth")
    other = build_detector(cfg)
    assert not load_weights(other, tmp_path / "backbone.pth", allow_missing=True).unexpected
    for name, value in weights.items():
        assert torch.equal(other.backbone.state_dict()[name], value)


def test_the_loss_of_attributes_is_that_of_grid_feats_vqa(shared_data):
    golden = np.load(shared_data / "golden" / "grid_feats" / "attr_loss.npz")
    scores = torch.from_numpy(golden["scores"]).requires_grad_()
    labels = torch.from_numpy(golden["labels"])
    loss = float(golden["weight"]) * attribute_loss(scores, labels, None)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert_close(loss.detach(), golden["loss"], 1e-6)
    assert_close(gradient, golden["gradient"], 1e-5)
    assert attribute_loss(scores, torch.full_like(labels, -1), None) == float(golden["loss_no_attributes"]) == 0
