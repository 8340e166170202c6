"""VinVL's detector, held to what scene_graph_benchmark computes, stage by stage, in its four settings at test."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import nms
from torchvision.ops.misc import FrozenBatchNorm2d

from bua.checkpoint import load_weights
from bua.config import load_cfg
from bua.errors import InputError
from bua.extraction import RegionChoice
from bua.io.images import read_image
from bua.modeling import build_detector, vinvl_boxes
from bua.modeling.optimize import optimize_for_inference
from bua.modeling.vinvl_boxes import VinVLResize, decode, resized_size
from bua.modeling.vinvl_filters import choose_attributes, choose_detections

CONFIG = "configs/vinvl_x152c4.yaml"
# The slim network of the golden data.
SLIM = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "326"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"],
    *["MODEL.RESNETS.NUM_GROUPS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "2", "MODEL.RPN.POST_NMS_TOPK_TEST", "60"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "40", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "12"],
    *["MODEL.BUA.ATTRIBUTES.EMBEDDING_DIM", "24", "MODEL.BUA.ATTRIBUTES.HIDDEN_DIM", "40"],
    *["MODEL.BUA.VINVL.MAX_NUM_ATTR_PER_OBJ", "8"],
]
# The filter, and whether boxes are regressed.
MODES = {"nms1_prop": (1, False), "nms1_reg": (1, True), "nms0_reg": (0, True), "nms2_prop": (2, False)}
MAX_DETECTIONS = 24  # of the golden data


@pytest.fixture(scope="module")
def golden(shared_data):
    """The golden detector, what scene_graph_benchmark computes with it, and the prepared image."""
    folder = shared_data / "golden" / "vinvl"
    detector = build_detector(load_cfg(CONFIG, SLIM)).eval()
    assert load_weights(detector, folder / "weights.pth") == ([], [], [])
    image = read_image(shared_data / "images" / Path(json.loads((folder / "config.json").read_text())["image"]).name)
    return detector, np.load(folder / "outputs.npz"), detector.prepare(image)


@pytest.fixture(scope="module")
def stages(golden):
    """What bua computes with the golden detector, by the names of the golden data."""
    detector, outputs, inputs = golden
    with torch.inference_mode():
        pixels = detector._stack([inputs])
        stem = detector.backbone.stem(pixels)
        layer1 = detector.backbone.res2(stem)
        layer2 = detector.backbone.res3(layer1)
        c4 = detector.backbone.res4(layer2)
        anchors, objectness, deltas = detector.proposal_generator(c4)
        (image,) = detector._describe([inputs], None, regress=True)
        # Of the same boxes, since a cell's value changes by more than its tolerance within that of the boxes.
        pooled = detector.roi_heads.pool(c4, [torch.from_numpy(outputs["proposals"])], 16)
        logits = detector.roi_heads.box_predictor(image.features, False)[0]
    grid = c4.shape[-2:]
    computed = {
        "input_shape": torch.tensor(pixels[0].shape),
        "input_corner": pixels[0, :, :16, :16],
        "input_middle": pixels[0, :, pixels.shape[2] // 2 :, pixels.shape[3] // 2 :][:, :8, :8],
        "input_last": pixels[0, :, -8:, -8:],
        "c4": c4[0],
        "cell_anchors": anchors[:15],
        "anchors_first": anchors[:60],
        "anchors_last": anchors[-60:],
        "rpn_objectness_logits": objectness[0].view(*grid, -1).permute(2, 0, 1),
        "rpn_deltas": deltas[0].reshape(*grid, -1).permute(2, 0, 1),
        "proposals": image.regions.network,
        "proposal_scores": image.regions.objectness,
        "pooled_first4": pooled[:4],
        "pooled_mean": pooled.mean(dim=(2, 3)),
        "proposal_features": image.features,
        "class_logits": logits.roll(1, 1),
        "box_deltas": image.deltas,
    }
    for name, values in {"stem": stem, "layer1": layer1, "layer2": layer2, "c4": c4}.items():
        computed[f"{name}_corner"] = values[0, :, :6, :6]
        computed[f"{name}_mean"] = values[0].mean(dim=(1, 2))
        computed[f"{name}_std"] = values[0].std(dim=(1, 2), correction=0)
    return computed


# The tolerances that the README of the golden data derives.
@pytest.mark.parametrize(
    ("tolerance", "names"),
    [
        (1e-4, ["input_shape", "input_corner", "input_middle", "input_last"]),
        (0, ["cell_anchors", "anchors_first", "anchors_last"]),
        (1e-4, [f"{stage}_{part}" for stage in ("stem", "layer1", "layer2") for part in ("corner", "mean", "std")]),
        (2e-3, ["c4", "c4_corner", "c4_mean", "c4_std", "pooled_first4", "pooled_mean", "proposal_features"]),
        (1e-2, ["rpn_objectness_logits", "rpn_deltas", "class_logits", "box_deltas"]),
        (5e-2, ["proposals"]),
        (1e-3, ["proposal_scores"]),
    ],
)
def test_every_stage_agrees_with_scene_graph_benchmark(golden, stages, tolerance, names):
    for name in names:
        expected = golden[1][name]
        # bua has no boxes of the background.
        expected = expected[:, 4:] if name == "box_deltas" else expected
        assert stages[name].shape == expected.shape, name
        np.testing.assert_allclose(stages[name], expected, rtol=0, atol=tolerance, err_msg=name)


def detect(detector, inputs, mode):
    nms_filter, regressed = MODES[mode]
    detector.post_processing = detector.post_processing._replace(nms_filter=nms_filter)
    (found,) = detector.detect([inputs], max_detections=MAX_DETECTIONS, regressed=regressed)
    detector.post_processing = detector.post_processing._replace(nms_filter=1)
    return found


def assert_as_golden(found, golden, mode):
    expected = {name.partition("/")[2]: golden[name] for name in golden.files if name.startswith(f"{mode}/")}
    assert (found.classes + 1).tolist() == expected["labels"].tolist()
    for name, values, tolerance in [
        ("boxes_input", found.network, 5e-2),
        ("boxes", found.boxes, 5e-2),
        ("scores", found.scores, 1e-3),
        ("box_features", found.features, 2e-3),
        ("attr_scores", found.attribute_scores, 1e-3),
    ]:
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance, err_msg=name)
    named = expected["attr_scores"] > 0
    assert ((found.attribute_scores > 0).numpy() == named).all()
    assert (found.attributes.numpy()[named] + 1).tolist() == expected["attr_labels"][named].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_detections_agree_in_every_setting(golden, mode):
    detector, outputs, inputs = golden
    assert_as_golden(detect(detector, inputs, mode), outputs, mode)


def test_the_optimized_detector_finds_the_same(golden, stages):
    detector, outputs, inputs = golden
    optimized = optimize_for_inference(detector)
    found = detect(optimized, inputs, "nms1_reg")
    assert_as_golden(found, outputs, "nms1_reg")
    plain = stages["proposal_features"]
    assert (found.features - plain[found.regions]).abs().max() <= 1e-4 * plain.max()


def test_box_coding_agrees(golden):
    values = {name: torch.from_numpy(golden[1][name]) for name in golden[1].files if name.startswith("coder_")}
    boxes, deltas = values["coder_boxes"], values["coder_deltas"]
    torch.testing.assert_close(decode(boxes, deltas), values["coder_out_rpn"])
    torch.testing.assert_close(decode(boxes, deltas, (10.0, 10.0, 5.0, 5.0)), values["coder_out_box"])


def test_the_golden_data_tells_mistakes_apart(golden, stages, monkeypatch):
    detector, outputs, inputs = golden
    wrong = copy.deepcopy(detector)
    for module in wrong.backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 2e-5  # on top of bua's, which its weights allow for
    with torch.inference_mode():
        assert not agrees(wrong.backbone(wrong._stack([inputs]))[0], outputs["c4"], 2e-3)

        boxes, c4 = torch.from_numpy(outputs["proposals"]), stages["c4"][None]
        wrong.roi_heads.box_cfg = wrong.roi_heads.box_cfg.clone()
        wrong.roi_heads.box_cfg.POOLER_TYPE = "ROIAlignV2"
        assert not agrees(wrong.roi_heads.pool(c4, [boxes], 16)[:4], outputs["pooled_first4"], 2e-2)

        # Suppression with widths x2-x1+1, and at the threshold.
        suppress = vinvl_boxes.suppress_candidates
        monkeypatch.setattr(vinvl_boxes, "suppress_candidates", lambda *args: suppress(*args[:-1], "caffe"))
        (regions,) = detector._propose_in(c4, [0], [inputs])
        assert not agrees(regions.network, outputs["proposals"], 5e-2)


def agrees(values, expected, tolerance):
    return values.shape == expected.shape and np.allclose(values, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def slim():
    """A smaller detector with random weights, and two prepared images of different sizes."""
    torch.manual_seed(0)
    overrides = [*SLIM, "MODEL.RESNETS.DEPTH", "50", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
    detector = build_detector(load_cfg(CONFIG, overrides)).eval()
    # Random weights have almost the same score for every class.
    detector.roi_heads.box_predictor.cls_score.weight.data.normal_()
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, size, dtype=np.uint8) for size in ((100, 140, 3), (120, 90, 3))]
    return detector, [detector.prepare(image, number) for number, image in enumerate(images)]


def test_a_batch_gives_the_regions_of_each_image(slim):
    detector, inputs = slim
    together = detector.choose(inputs, RegionChoice())
    for number, regions in enumerate(together):
        (alone,) = detector.choose([inputs[number]], RegionChoice())
        assert regions.image_id == number
        assert (regions.width, regions.height) == [(140, 100), (90, 120)][number]
        assert 10 <= len(regions) <= 20
        assert (np.diff(regions.object_scores) <= 0).all()
        np.testing.assert_allclose(regions.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(regions.features, alone.features, atol=1e-3)
        assert regions.attribute_ids.tolist() == alone.attribute_ids.tolist()
        assert set(regions.attribute_scores[regions.attribute_scores <= 0.05]) <= {0}


def test_given_boxes_are_described_as_the_same_proposals(slim):
    detector, inputs = slim
    predictions = detector.infer(inputs)
    described = detector.describe(inputs, [found.proposals for found in predictions])
    for regions, found in zip(described, predictions):
        np.testing.assert_allclose(regions.boxes, found.proposals, atol=1e-4)
        np.testing.assert_allclose(regions.features, found.features, atol=1e-3)
        assert regions.object_ids.tolist() == found.class_probs.argmax(dim=1).tolist()
        assert found.boxes.shape == (len(regions), 40, 4)


def test_what_a_filter_cannot_choose_is_refused(slim):
    detector, inputs = copy.copy(slim[0]), slim[1]
    detector.post_processing = detector.post_processing._replace(nms_filter=2)
    with pytest.raises(InputError, match="NMS_FILTER 2 has no regressed boxes"):
        detector.choose(inputs, RegionChoice(regressed=True))
    with pytest.raises(InputError, match=r"set that key|NMS_THRESH_TEST"):
        detector.choose(inputs, RegionChoice(nms_threshold=0.4))
    assert len(detector.choose(inputs, RegionChoice())) == 2
    detector.post_processing = detector.post_processing._replace(spatial_features=True)
    (regions, _) = detector.choose(inputs, RegionChoice())
    assert regions.features.shape[1] == detector.feature_dim == slim[0].feature_dim + 6
    with pytest.raises(InputError, match="not trained"):
        detector(inputs)
    with pytest.raises(InputError, match=r"MODEL\.BUA\.VINVL\.NMS_FILTER is 3"):
        build_detector(load_cfg(CONFIG, [*SLIM, "MODEL.BUA.VINVL.NMS_FILTER", "3"]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (600, 800)),
        ((640, 480), (800, 600)),
        ((600, 700), (600, 700)),  # the short side is as it should be
        ((500, 333), (900, 600)),  # 900.9 is rounded down
        ((1200, 400), (999, 333)),  # the long side limits the short one
        ((100, 100), (600, 600)),
    ],
)
def test_sizes_of_resized_images(size, expected):
    assert resized_size(*size, 600, 1000) == expected


def test_images_are_smoothed_where_they_become_smaller():
    stripes = np.zeros((60, 80, 3), np.uint8)
    stripes[::2] = 255
    inputs = VinVLResize(15, 100)(stripes, 7)
    assert inputs.image.shape == (3, 15, 20)
    assert inputs.scale == (0.25, 0.25)
    assert (inputs.image - 127).abs().max() < 12
    assert VinVLResize(60, 100)(stripes).image[:, 0].unique().tolist() == [255]
    with pytest.raises(InputError, match="crop it"):
        VinVLResize(60, 100)(np.zeros((1, 900, 3), np.uint8))


def test_deltas_of_zero_are_the_box_itself_and_enlargement_is_limited():
    box = torch.tensor([[10.0, 20, 29, 59]])
    assert decode(box, torch.zeros(1, 8)).tolist() == [[10, 20, 29, 59, 10, 20, 29, 59]]
    (decoded,) = decode(box, torch.tensor([[0.0, 0, 9, 9]])).tolist()
    assert decoded[2] - decoded[0] + 1 == pytest.approx(20 * 1000 / 16)


def one_class_at_a_time(boxes, probs, threshold, least, most):
    """Filter 1 as the original writes it."""
    mask = torch.zeros_like(probs)
    for number in range(probs.shape[1]):
        of_class = boxes if boxes.dim() == 2 else boxes[:, number]
        mask[nms(of_class, probs[:, number], 0.3), number] = 1
    scores, classes = (mask * probs).max(dim=1)
    rows = scores.nonzero().squeeze(1)
    order = scores[rows].sort(descending=True, stable=True).indices
    rows = rows[order[: min(max(int((scores >= threshold).sum()), least), most)]]
    return rows, classes[rows]


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("sharpness", [0.5, 3.0])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.9])
def test_filter_1_is_the_originals_loop(per_class, sharpness, threshold):
    generator = torch.Generator().manual_seed(int(10 * threshold) + per_class)
    shape = (50, 20, 4) if per_class else (50, 4)
    corners = torch.rand(shape, generator=generator) * 60
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], dim=-1)
    probs = (torch.randn(50, 21, generator=generator) * sharpness).softmax(dim=1)[:, :-1]
    chosen = choose_detections(boxes, probs, 1, min_detections=5, max_detections=30, score_threshold=threshold)
    rows, classes = one_class_at_a_time(boxes, probs, threshold, 5, 30)
    assert chosen.regions.tolist() == rows.tolist()
    assert chosen.classes.tolist() == classes.tolist()
    assert torch.equal(chosen.scores, probs[rows, classes])


# Boxes 0 and 1 overlap, and each is far from the others.
FOUR_BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [40, 0, 50, 10]])


def test_filter_0_halves_the_threshold_while_there_are_too_few():
    probs = torch.tensor([[0.5, 0.3], [0.4, 0.1], [0.06, 0.04], [0.0, 0.002]])
    options = {"score_threshold": 0.2, "nms_threshold": 0.5}
    chosen = choose_detections(FOUR_BOXES, probs, 0, min_detections=2, **options)
    assert [chosen.regions.tolist(), chosen.classes.tolist()] == [[0, 0], [0, 1]]  # class by class
    chosen = choose_detections(FOUR_BOXES, probs, 0, min_detections=3, **options)  # at 0.05
    assert [chosen.regions.tolist(), chosen.classes.tolist()] == [[0, 2, 0], [0, 0, 1]]
    assert len(choose_detections(FOUR_BOXES, probs, 0, min_detections=9, **options).regions) == 5
    assert len(choose_detections(FOUR_BOXES, probs * 1e-4, 0, min_detections=9, **options).regions) == 0
    chosen = choose_detections(FOUR_BOXES, probs, 0, min_detections=3, max_detections=2, **options)
    assert chosen.scores.tolist() == pytest.approx([0.5, 0.3])


def test_filter_2_suppresses_independently_of_the_class():
    probs = torch.tensor([[0.5, 0.3], [0.1, 0.4], [0.06, 0.04], [0.001, 0.0015]])
    chosen = choose_detections(FOUR_BOXES, probs, 2, score_threshold=0.2, nms_threshold=0.5)
    assert chosen.regions.tolist() == [0, 2]  # the last one is below a hundredth of the threshold


def test_the_limit_of_attributes_of_an_image_counts_zeros_too():
    probs = torch.full((4, 6), 0.01)
    probs[:, 1], probs[:, 4] = torch.tensor([0.3, 0.2, 0.06, 0.05]), torch.tensor([0.4, 0.1, 0.07, 0.02])
    attributes, scores = choose_attributes(probs, max_per_object=2, max_per_image=3)
    assert attributes.tolist() == [[4, 1], [1, 4], [4, 1], [1, 4]]
    assert scores.tolist() == torch.tensor([[0.4, 0.3], [0.2, 0.1], [0.07, 0.06], [0.0, 0.0]]).tolist()
    # Where nothing is zero but "no attribute", the limit has an effect, though another one than its name says.
    _, scores = choose_attributes(torch.full((2, 3), 0.3) + torch.arange(6).view(2, 3) / 100, 0.05, 16, 1)
    assert (scores > 0).sum() == 3
