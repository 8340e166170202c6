import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import build_detector, optimize
from bua.modeling.optimize import optimize_for_inference

FIELDS = ("proposals", "objectness", "class_probs", "boxes", "features", "attribute_probs")
SLIM = [
    *["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.DEPTH", "50", "MODEL.RPN.CONV_DIMS", "[16]"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", "23", "INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "200"],
]
# The kinds of detector that there are: the original's, MILVLG's two, grid-feats-vqa's, and others' norms.
KINDS = {
    "original": [],
    "batch norm": ["MODEL.RESNETS.NORM", "BN"],
    "group norm": ["MODEL.RESNETS.NORM", "GN"],
    "strided res5": ["MODEL.RESNETS.RES5_DILATION", "1"],
    "ResNet version 2": [
        *["MODEL.BUA.RESNET_VERSION", "2", "MODEL.RESNETS.STRIDE_IN_1X1", "False"],
        *["MODEL.RESNETS.RES5_DILATION", "1"],
    ],
    "RoIAlign": ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", "MODEL.BUA.BOX_CONVENTION", "detectron2"],
    "groups": ["MODEL.RESNETS.NUM_GROUPS", "2"],
}


def make_detector(*overrides):
    torch.manual_seed(0)
    detector = build_detector(load_cfg("configs/vg_r101.yaml", [*SLIM, *overrides])).eval()
    for module in detector.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            for values in (module.weight, module.running_var):
                values.data.mul_(torch.rand_like(values) + 0.5)
            for values in (module.bias, module.running_mean):
                values.data.add_(torch.rand_like(values) * 0.4 - 0.2)
    return detector


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_close(actual, expected):
    assert actual.dtype == expected.dtype == torch.float32
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_float32_gives_the_same(kind):
    detector = make_detector(*KINDS[kind])
    fast = optimize_for_inference(detector)
    images = [random_image(60, 80, 1), random_image(60, 80, 2), random_image(80, 60, 3)]
    for found, expected in zip(fast.predict(images), detector.predict(images)):
        for field in FIELDS:
            assert_close(getattr(found, field), getattr(expected, field))
    assert fast.infer([]) == []
    boxes = [torch.tensor([[3.0, 4, 50, 41], [0, 0, 79, 59], [20, 20, 21, 21]]), torch.zeros(1, 4), torch.zeros(0, 4)]
    for found, expected in zip(fast.predict(images, boxes), detector.predict(images, boxes)):
        assert torch.equal(found.proposals, expected.proposals)
        if len(expected.features):
            assert_close(found.features, expected.features)
    for found, expected in zip(fast.grid(prepared(detector, images)), detector.grid(prepared(detector, images))):
        assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near(kind):
    detector = make_detector(*KINDS[kind])
    fast = optimize_for_inference(detector, precision="bf16")
    image = random_image(60, 80)
    (expected,) = detector.predict([image])
    (found,) = fast.predict([image], [expected.proposals])
    assert nn.functional.cosine_similarity(found.features, expected.features).min() > 0.999
    assert all(getattr(found, field).dtype == torch.float32 for field in FIELDS)
    (found,) = fast.predict([image])
    assert abs(len(found.features) - len(expected.features)) <= 5
    (grid,) = fast.grid(prepared(fast, [image]))
    (expected,) = detector.grid(prepared(detector, [image]))
    assert grid.dtype == torch.float32
    assert nn.functional.cosine_similarity(grid.flatten(), expected.flatten(), dim=0) > 0.999


def test_results_do_not_depend_on_the_step(monkeypatch):
    detector = make_detector()
    (expected,) = detector.predict([random_image(60, 80)])
    for step in ((1,), (7,), (2, 100)):
        monkeypatch.setitem(optimize.REGIONS_PER_STEP, "cpu", step)
        (found,) = optimize_for_inference(detector).predict([random_image(60, 80)])
        assert_close(found.features, expected.features)


@pytest.mark.parametrize("kind", ["original", "RoIAlign"])
def test_compiled_code_gets_few_shapes_whatever_the_number_of_regions(kind, monkeypatch):
    """Each new shape would be compiled for a minute."""
    monkeypatch.setitem(optimize.REGIONS_PER_STEP, "cpu", (3, 6))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    detector = make_detector(*KINDS[kind])
    fast = optimize_for_inference(detector, compile=True)
    shapes = set()

    def record(module, inputs):
        out, shortcut = inputs
        shapes.add((out.shape, out.stride(), shortcut.shape, shortcut.stride()))

    fast.roi_heads.mean_of_res5.register_forward_pre_hook(record)
    generator = torch.Generator().manual_seed(0)
    for number in range(15):
        boxes = torch.rand(number, 4, generator=generator).cumsum(1) * 20
        (found,) = fast.predict([random_image(60, 80)], [boxes])
        (expected,) = detector.predict([random_image(60, 80)], [boxes])
        assert len(found.features) == number
        if number:
            assert_close(found.features, expected.features)
    assert {out[0] for out, *_ in shapes} == {3, 6}
    assert len(shapes) == 2


def test_the_detector_stays_and_its_copy_has_no_norms():
    detector = make_detector().train()
    before = copy.deepcopy(detector.state_dict())
    fast = optimize_for_inference(detector)
    fast.predict([random_image(60, 80)])
    assert detector.training
    assert any(parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not any(isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)) for module in fast.modules())


@pytest.mark.parametrize("kind", ["original", "RoIAlign"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_convolution_is_channels_last(kind, precision):
    fast = optimize_for_inference(make_detector(*KINDS[kind]), precision=precision)
    strays = []

    def check(module, inputs, output):
        if inputs[0].shape[1] > 3 and not output.is_contiguous(memory_format=torch.channels_last):
            strays.append(module)

    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(check)
    fast.predict([random_image(60, 80)])
    assert strays == []


def test_grid_features_are_res5_over_the_image():
    detector = make_detector(*KINDS["strided res5"])
    images = prepared(detector, [random_image(60, 80, 1), random_image(80, 60, 2), random_image(60, 80, 3)])
    grids = detector.grid(images)
    for image, grid in zip(images, grids):
        feature_map = detector.backbone(detector._stack([image]))
        with torch.no_grad():
            (expected,) = detector.roi_heads.res5(feature_map)
        assert_close(grid, expected)
        assert grid.shape[0] == 128
        assert grid.shape[1] == -(-feature_map.shape[2] // 2)
        assert grid.min() >= 0


def test_boxes_are_regressed_only_where_asked():
    detector = make_detector()
    images = prepared(detector, [random_image(60, 80)])
    (with_boxes,) = detector.infer(images)
    (without,) = detector.infer(images, regress=False)
    assert without.boxes is None
    for field in ("proposals", "class_probs", "features", "attribute_probs"):
        assert torch.equal(getattr(with_boxes, field), getattr(without, field))


def test_bad_requests_are_named(monkeypatch, caplog):
    detector = make_detector()
    with pytest.raises(InputError, match="precision 'fp16'"):
        optimize_for_inference(detector, precision="fp16")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no C\+\+ compiler 'no-such-compiler'"):
        optimize_for_inference(detector, compile=True)
    monkeypatch.setattr(optimize, "_has_bf16", lambda: False)
    with caplog.at_level(logging.WARNING):
        optimize_for_inference(detector, precision="bf16")
    assert "no bfloat16 arithmetic" in caplog.text


def prepared(detector, images):
    return [detector.prepare(image) for image in images]
