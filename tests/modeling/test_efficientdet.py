"""EfficientDet, held to what effdet itself computes from the same weights and images."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from bua.checkpoint import identify, load_checkpoint, load_weights
from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import build_detector
from bua.modeling.build import build_model
from bua.modeling.efficientdet import Letterbox

effdet = pytest.importorskip("effdet")
SIZE = (64, 96)
SLIM = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "3"],
    *["MODEL.BUA.EFFICIENTDET.BACKBONE", "test_resnet", "MODEL.BUA.EFFICIENTDET.IMAGE_SIZE", str(SIZE)],
    *["MODEL.BUA.EFFICIENTDET.MAX_LEVEL", "5", "MODEL.BUA.EFFICIENTDET.FPN_CHANNELS", "8"],
    *["MODEL.BUA.EFFICIENTDET.FPN_REPEATS", "1", "MODEL.BUA.EFFICIENTDET.HEAD_REPEATS", "1"],
    *["TEST.DETECTIONS_PER_IMAGE", "20"],
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(load_cfg("configs/vg_efficientdet_d1.yaml", SLIM))
    # Scores that differ, and boxes that are regressed.
    for net in (model.network.class_net, model.network.box_net):
        torch.nn.init.normal_(net.predict.conv_pw.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((50, 120), (100, 70))]


def effdet_input(image: np.ndarray) -> tuple[torch.Tensor, float, tuple[int, int]]:
    """Returns an image, its scale and its size as effdet's own loader of images makes them."""
    from effdet.data.transforms import transforms_coco_eval

    rgb = Image.fromarray(image[:, :, ::-1])
    pixels, about = transforms_coco_eval(SIZE, use_prefetcher=True)(rgb, {"img_scale": 1.0})
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(pixels).float() - mean) / std, about["img_scale"], rgb.size


def test_boxes_and_scores_are_those_of_effdet(model, images):
    prepared = [effdet_input(image) for image in images]
    detector = model.for_inference()
    bench = effdet.DetBenchPredict(model.network).eval()
    bench.max_detection_points = detector.bench.max_detection_points  # more than this small network has scores
    with torch.no_grad():
        expected = bench(
            torch.stack([pixels for pixels, _, _ in prepared]),
            {
                "img_scale": torch.tensor([scale for _, scale, _ in prepared]),
                "img_size": torch.tensor([size for _, _, size in prepared], dtype=torch.float32),
            },
        ).numpy()
    found = detector.detect_boxes([detector.prepare(image) for image in images])
    assert detector.detect_boxes([]) == []
    for one, rows in zip(found, expected):
        assert len(one.boxes) == len(rows)
        np.testing.assert_allclose(one.boxes, rows[:, :4], atol=1e-2)
        np.testing.assert_allclose(one.scores, rows[:, 4], atol=1e-4)
        np.testing.assert_array_equal(one.classes, rows[:, 5] - 1)


def test_fewer_boxes_than_the_limit(model, images):
    detector = model.for_inference()
    detector.bench.max_det_per_image = 10_000
    (found,) = detector.detect_boxes([detector.prepare(images[0])])
    assert 20 < len(found.boxes) < 10_000
    assert found.classes.min() == 0
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes.min() >= 0
    assert (found.boxes.max(axis=0) <= (120, 50, 120, 50)).all()


def test_losses_are_those_of_effdet(model, images):
    batch = [model.prepare(image) for image in images]
    # The second image has no objects, since it may lose them by a flip.
    boxes, classes = [[[8, 10, 50, 60], [30, 5, 90, 40]], []], [[2, 0], []]
    for inputs, image_boxes, image_classes in zip(batch, boxes, classes):
        inputs.boxes = torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4)
        inputs.classes = torch.tensor(image_classes, dtype=torch.int64)
    model.eval()
    losses = model(batch)
    pixels = torch.stack([effdet_input(image)[0] for image in images])
    target = {
        "bbox": [inputs.boxes[:, [1, 0, 3, 2]] for inputs in batch],
        "cls": [inputs.classes + 1 for inputs in batch],
    }
    expected = effdet.DetBenchTrain(model.network, create_labeler=True).train(False)
    expected.training = True  # without its detections; the layers stay in evaluation
    expected = expected(pixels, target)
    assert losses["loss_cls"].item() == pytest.approx(expected["class_loss"].item(), rel=1e-4)
    assert sum(losses.values()).item() == pytest.approx(expected["loss"].item(), rel=1e-4)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.network.class_net.parameters())


def test_letterbox_keeps_the_aspect_ratio_and_pads_with_the_mean(images):
    inputs = Letterbox(SIZE, [103.53, 116.28, 123.675])(images[1], 7)
    assert (inputs.image_id, inputs.width, inputs.height, inputs.scale) == (7, 70, 100, (0.64, 0.64))
    assert inputs.image.shape == (3, *SIZE)
    assert inputs.image[:, :, 45:].flatten(1).unique(dim=1).tolist() == [[104], [116], [124]]
    assert Letterbox(SIZE, [0, 0, 0])(np.zeros((1, 5000, 3), np.uint8)).image.shape == (3, *SIZE)


def test_effdets_own_checkpoints_are_read(model, tmp_path):
    torch.save(model.network.state_dict(), tmp_path / "effdet.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    assert identify(tmp_path / "effdet.pth").name == "effdet"
    expected = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name in ("effdet.pth", "own.pth"):
        loaded = load_checkpoint(tmp_path / name)
        torch.testing.assert_close({name: loaded[name] for name in expected}, expected)
    other = build_model(load_cfg("configs/vg_efficientdet_d1.yaml", [*SLIM, "MODEL.ROI_HEADS.NUM_CLASSES", "5"]))
    report = load_weights(other, tmp_path / "effdet.pth", allow_missing=True)
    assert report.reshaped == ["network.class_net.predict.conv_pw.weight", "network.class_net.predict.conv_pw.bias"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.BUA.EFFICIENTDET.NAME", "d1"], "NAME is 'd1'; use a name that effdet knows"),
        (["MODEL.BUA.EFFICIENTDET.BACKBONE", "resnet"], "BACKBONE is 'resnet'; use the name of a model in timm"),
        (["MODEL.BUA.EFFICIENTDET.IMAGE_SIZE", "(0, 64)"], "IMAGE_SIZE is .*must be 1 or more"),
        (["MODEL.BUA.EFFICIENTDET.IMAGE_SIZE", "(64,)"], "IMAGE_SIZE is .*must be 2 numbers"),
        (["MODEL.BUA.EFFICIENTDET.FPN_REPEATS", "-1"], "FPN_REPEATS is -1; it must be 0 or more"),
        (["MODEL.BUA.EFFICIENTDET.MAX_LEVEL", "4"], "MAX_LEVEL is 4; it must be 5 or more, or 0 for the model's own"),
        (["INPUT.FORMAT", "RGB"], "FORMAT is 'RGB'; EfficientDet has 'BGR'"),
        (["MODEL.MASK_ON", "True"], "MASK_ON is True; EfficientDet has False"),
    ],
)
def test_a_configuration_without_a_model_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        build_model(load_cfg("configs/vg_efficientdet_d1.yaml", [*SLIM, *overrides]))


def test_it_is_no_detector_of_regions():
    with pytest.raises(InputError, match="--boxes-from"):
        build_detector(load_cfg("configs/vg_efficientdet_d1.yaml", SLIM))


def test_without_effdet(monkeypatch):
    original = builtins.__import__

    def fail(name, *arguments, **options):
        if name == "effdet":
            raise ModuleNotFoundError("No module named 'effdet'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(InputError, match=r"No module named 'effdet'; pip install 'bottom-up-attention\[effdet\]'"):
        build_model(load_cfg("configs/vg_efficientdet_d1.yaml", SLIM))
