"""Boxes of one detector, described by another network: crops of the image, or a detector of regions."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bua.checkpoint import save_checkpoint
from bua.commands import main
from bua.config import load_cfg
from bua.detection.description import KEY, describe_detector
from bua.detection.found_objects import detect_objects
from bua.errors import InputError
from bua.extraction import ExtractorConfig, RegionChoice, box_detectors, extract
from bua.extraction.cluster import _with_absolute_paths
from bua.extraction.crops import IMAGE_SIZE, PATCH_SIZE, CropEncoder
from bua.extraction.described_boxes import DescribedBoxes
from bua.extraction.image_detector import open_detector
from bua.features import open_features
from bua.modeling.build import build_model
from bua.pipelines import pipeline
from bua.structures import DetectedBoxes, Regions

pytest.importorskip("effdet")
NAMES = ["circle", "square", "star"]
EFFICIENTDET = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "3"],
    *["MODEL.BUA.EFFICIENTDET.BACKBONE", "test_resnet", "MODEL.BUA.EFFICIENTDET.IMAGE_SIZE", "(64, 96)"],
    *["MODEL.BUA.EFFICIENTDET.MAX_LEVEL", "5", "MODEL.BUA.EFFICIENTDET.FPN_CHANNELS", "8"],
    *["MODEL.BUA.EFFICIENTDET.FPN_REPEATS", "1", "MODEL.BUA.EFFICIENTDET.HEAD_REPEATS", "1"],
]
REGIONS = """
_BASE_: shapes.yaml
MODEL:
  DEVICE: cpu
  RESNETS: {STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 2}
  RPN: {CONV_DIMS: [8]}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 100}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint of a slim EfficientDet, the configuration of a slim detector of regions, and two images."""
    folder = tmp_path_factory.mktemp("boxes")
    cfg = load_cfg("configs/vg_efficientdet_d1.yaml", EFFICIENTDET)
    torch.manual_seed(0)
    model = build_model(cfg)
    for net in (model.network.class_net, model.network.box_net):
        torch.nn.init.normal_(net.predict.conv_pw.weight, std=0.5)
        torch.nn.init.zeros_(net.predict.conv_pw.bias)  # so that scores are around 0.5
    save_checkpoint(
        folder / "efficientdet.pth",
        model=model.state_dict(),
        **{KEY: describe_detector(cfg, NAMES, []).state()},
    )
    (folder / "regions.yaml").write_text(REGIONS)
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate([(80, 60, 3), (60, 100, 3)]):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), generator.integers(0, 256, size, dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    def call(output, **options):
        options = {"boxes_from": folder / "efficientdet.pth", "max_boxes": 3, "device": "cpu", **options}
        return extract(folder / "images", folder / output, **options)

    return call


CROPS = {"format": "flat", "features_from": "crops", "crop_weights": "random"}


@pytest.fixture(scope="module")
def crops(folder, run):
    """The features of crops."""
    assert run("crops", **CROPS).done == 2
    return open_features(folder / "crops")


def test_a_crops_feature_is_that_of_the_obvious_implementation():
    encoder = CropEncoder("random")
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, size, dtype=np.uint8) for size in ((50, 80, 3), (90, 60, 3))]
    # One of them extends beyond the image, and one is smaller than a pixel of the square.
    boxes = [[[10.3, 5.5, 40.8, 30.2], [-5, -5, 20, 60]], [[30, 40, 30.01, 40.01]]]
    described = encoder.describe(
        [encoder.prepare(image, number) for number, image in enumerate(images)], [torch.tensor(one) for one in boxes]
    )
    for image, image_boxes, regions in zip(images, boxes, described):
        rgb = cv2.resize(image[:, :, ::-1].astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE)) / 255
        rgb = torch.tensor((rgb - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).permute(2, 0, 1).float()
        height, width = image.shape[:2]
        for box, feature in zip(image_boxes, regions.features):
            x1, y1, x2, y2 = np.array(box) * IMAGE_SIZE / (width, height, width, height)
            x1, y1, x2, y2 = int(max(x1, 0)), int(max(y1, 0)), int(min(x2, IMAGE_SIZE)), int(min(y2, IMAGE_SIZE))
            x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
            patch = torch.zeros_like(rgb)
            patch[:, y1:y2, x1:x2] = rgb[:, y1:y2, x1:x2]
            with torch.no_grad():
                expected = encoder.network(F.adaptive_avg_pool2d(patch[None], PATCH_SIZE))[0]
            np.testing.assert_allclose(feature, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_crops_of_the_most_confident_boxes(crops, run):
    assert set(crops) == {0, 1}
    for regions in crops.values():
        assert regions.features.shape == (3, 2048)
        assert (np.diff(regions.object_scores) <= 0).all()
        assert regions.object_scores.min() >= 0.1
        assert regions.boxes.shape == (3, 4)
        assert regions.attribute_ids is None
    assert crops.about["object_vocabulary"] == NAMES
    assert crops.about["settings"]["features_from"] == "crops"


def test_an_output_is_continued_with_the_same_settings_only(crops, run):
    assert run("crops", **CROPS).skipped == 2
    for changed, key in (
        ({"max_boxes": 2}, "max_boxes"),
        ({"overrides": ["TEST.DETECTIONS_PER_IMAGE", "5"]}, "boxes_from.TEST.DETECTIONS_PER_IMAGE"),
    ):
        with pytest.raises(InputError, match=f"was made with {key}"):
            run("crops", **{**CROPS, **changed})


def test_a_detector_describes_them_as_it_describes_given_boxes(folder, run, crops):
    of_regions = {"config_file": folder / "regions.yaml", "weights": "random"}
    assert run("described", format="flat", **of_regions).done == 2
    described = open_features(folder / "described")
    # The same boxes from a file.
    extract(folder / "images", folder / "given", format="flat", boxes=folder / "crops", device="cpu", **of_regions)
    given = open_features(folder / "given")
    for image_id, regions in described.items():
        np.testing.assert_array_equal(regions.boxes, crops[image_id].boxes)
        np.testing.assert_array_equal(regions.object_ids, crops[image_id].object_ids)
        np.testing.assert_allclose(regions.features, given[image_id].features, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(regions.attribute_ids, given[image_id].attribute_ids)
    assert described.about["object_vocabulary"] == NAMES


def test_boxes_of_a_detector_of_regions(folder, run):
    config = folder / "other.yaml"
    torch.manual_seed(0)
    cfg = load_cfg(folder / "regions.yaml")
    save_checkpoint(folder / "regions.pth", model=build_model(cfg).state_dict())
    config.write_text(f"_BASE_: {folder}/regions.yaml\nMODEL: {{WEIGHTS: {folder}/regions.pth}}\n")
    options = {"boxes_from": config, "score_threshold": 0.0, "max_boxes": 4}
    assert run("of_regions", format="npz", config_file=folder / "regions.yaml", weights="random", **options).done == 2
    for regions in open_features(folder / "of_regions").values():
        assert len(regions) == 4
        assert (np.diff(regions.object_scores) <= 0).all()


class FakeTorchvision(torch.nn.Module):
    """Finds a box for each of three labels."""

    def forward(self, images):
        assert all(image.max() <= 1 for image in images)
        boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 30, 30], [0, 0, 9, 8]])
        found = {"boxes": boxes, "scores": torch.tensor([0.3, 0.9, 0.05]), "labels": torch.tensor([1, 90, 3])}
        return [found] * len(images)


def test_boxes_of_torchvisions_detectors(folder, run, monkeypatch):
    monkeypatch.setattr(box_detectors.torchvision.models, "get_model", lambda name, weights: FakeTorchvision())
    name = "torchvision:fasterrcnn_resnet50_fpn"
    assert run("torchvision", boxes_from=name, **CROPS).done == 2
    store = open_features(folder / "torchvision")
    assert store[0].boxes.tolist() == [[1, 1, 30, 30], [0, 0, 9, 9]]
    assert [store.about["object_vocabulary"][number] for number in store[0].object_ids] == ["toothbrush", "person"]


class FakeBoxes:
    def __init__(self, boxes, scores):
        self.found = DetectedBoxes(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.arange(len(scores))
        )

    def detect_boxes(self, batch):
        return [self.found] * len(batch)


class FakeDescriber:
    def describe(self, batch, boxes):
        return [Regions(0, 100, 50, one.numpy(), one.numpy()) for one in boxes]


BOXES = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 40, 40], [50, 20, 60, 40]]


@pytest.mark.parametrize(
    ("scores", "options", "rows"),
    [
        ((0.9, 0.8, 0.3, 0.1), {}, (0, 1, 2, 3)),
        ((0.9, 0.8, 0.3, 0.09), {}, (0, 1, 2)),
        ((0.9, 0.8, 0.3, 0.1), {"max_boxes": 2}, (0, 1)),
        ((0.9, 0.8, 0.3, 0.1), {"nms_threshold": 0.5, "max_boxes": 2}, (0, 2)),
        ((0.9, 0.8, 0.05, 0.01), {"min_boxes": 4}, (0, 1, 1, 1)),
    ],
)
def test_which_boxes_are_chosen(scores, options, rows):
    detector = DescribedBoxes(FakeBoxes(BOXES, scores), FakeDescriber(), torch.device("cpu"), 4)
    options = {"min_boxes": 0, "max_boxes": 10, "score_threshold": 0.1, "nms_threshold": 1.0, **options}
    (regions,) = detector.choose([SimpleNamespace(width=100, height=50)], RegionChoice(**options))
    assert regions.object_ids.tolist() == list(rows)
    np.testing.assert_array_equal(regions.features, np.array(BOXES, np.float32)[list(rows)])


def test_without_boxes_the_whole_image_is_the_region():
    detector = DescribedBoxes(FakeBoxes([], []), FakeDescriber(), torch.device("cpu"), 4)
    (regions,) = detector.choose([SimpleNamespace(width=100, height=50)], RegionChoice(2, 10, 0.1, 1.0))
    assert regions.boxes.tolist() == [[0, 0, 100, 50]] * 2
    assert regions.object_ids is None


def test_the_objects_of_an_efficientdet_are_drawn_and_returned_without_attributes(folder, tmp_path):
    image, weights = folder / "images" / "1.png", folder / "efficientdet.pth"
    options = ["--threshold", "0.51", "--device", "cpu", "--output", str(tmp_path)]
    assert main(["visualize", str(image), "--detector", str(weights), *options]) == 0
    assert (tmp_path / "0001_1.jpg").is_file()
    opened = open_detector(weights, device="cpu", boxes_only=True)
    inputs = [opened.detector.prepare(cv2.imread(str(image)))]
    (found,) = opened.detector.detect_boxes(inputs)
    above = int((found.scores > 0.51).sum())
    assert 0 < above < len(found.scores)
    (objects,) = detect_objects(opened.detector, inputs, 0.51)
    np.testing.assert_array_equal([one.box for one in objects], found.boxes[:above])
    results = pipeline("object-detection", weights, device="cpu")(image, threshold=0.51)
    assert [one["label"] for one in results] == [NAMES[number] for number in found.classes[:above]]
    assert [one["score"] for one in results] == found.scores[:above].tolist()
    assert all(one["attributes"] == [] for one in results)


@pytest.mark.parametrize(
    "use",
    [
        lambda weights: open_detector(weights, device="cpu"),
        lambda weights: pipeline("image-feature-extraction", weights, device="cpu"),
        lambda weights: open_detector(weights, device="cpu", boxes_only=True).regions([np.zeros((9, 9, 3), np.uint8)]),
        lambda weights: open_detector(weights, device="cpu", boxes_only=True).detector.grid([]),
    ],
)
def test_features_of_an_efficientdet_are_refused(folder, use):
    with pytest.raises(InputError, match="EfficientDet finds boxes and has no features for them"):
        use(folder / "efficientdet.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes_from": None, "features_from": "crops"}, "--features-from crops: name the detector of the boxes"),
        ({"features_from": "nothing"}, "--features-from nothing: unknown; use one of detector, crops"),
        ({"features_from": "crops", "weights": "random"}, "uses only the detector of --boxes-from"),
        ({"grid": True}, "--boxes-from and --grid: choose one"),
        ({"crop_weights": "random"}, "--crop-weights: add --features-from crops"),
        ({"boxes_from": "torchvision:resnet50"}, "torchvision has no such detector; use one of fasterrcnn"),
        ({"boxes_from": "missing.pth"}, "missing.pth: no such checkpoint file"),
        ({"boxes_from": "vg_efficientdet_d1.yaml"}, r"weights \(--boxes-from\): none given; MODEL.WEIGHTS of"),
        ({"config_file": "vg_efficientdet_d1.yaml", "weights": "random"}, "let `bua extract` describe its boxes"),
        ({**CROPS, "format": "lxmert-tsv"}, "format lxmert-tsv: needs attributes"),
        ({**CROPS, "format": "npz", "keep_probabilities": True}, "chooses its own regions does not give the prob"),
    ],
)
def test_arguments_that_do_not_go_together(options, message, folder, run):
    with pytest.raises(InputError, match=message):
        run("refused", **{"min_boxes": 0, **options})


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    message = r"other.pth: is not a ResNet-50 of torchvision \(it lacks bn1.bias, bn1.running_mean, .*, \.\.\.\)"
    with pytest.raises(InputError, match=message):
        CropEncoder(str(tmp_path / "other.pth"))


def test_other_machines_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ExtractorConfig(None, (), "torchvision:ssd300_vgg16", features_from="crops", crop_weights="crops.pth")
    config = _with_absolute_paths(ExtractorConfig(None, (), "a.pth", boxes_from=config))
    assert config.weights == str(tmp_path / "a.pth")
    assert config.boxes_from.weights == "torchvision:ssd300_vgg16"
    assert config.boxes_from.crop_weights == str(tmp_path / "crops.pth")
