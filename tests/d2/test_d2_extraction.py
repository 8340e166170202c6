"""Extraction by Detectron2's engine: it equals the torch engine where both have the model, and Detectron2's own
detections for the models that only Detectron2 has."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.modeling import build_model
from test_d2_model import FIELDS, SLIM, amplify_outputs, as_input, assert_same, engines, random_image

import bua.d2
from bua.checkpoint import save_checkpoint
from bua.commands import main
from bua.d2.region_detector import Detectron2Detector
from bua.detection.found_objects import found_objects
from bua.errors import InputError
from bua.extraction import Extractor, ExtractorConfig, RegionChoice, list_images
from bua.extraction.engines import choose_engine
from bua.extraction.image_detector import open_detector
from bua.features import open_features

FPN = [*SLIM, "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.RPN.CONV_DIMS", "[-1]"]
ZOO = [*FPN, "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
STANDARD = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"
BOXES = torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85]])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of three images, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(100, 130), (130, 100)], start=1):
        cv2.imwrite(str(folder / f"{number}.png"), random_image(*size, seed=number))
    (folder / "3.png").write_bytes(b"no image")
    return folder


def detectron2_detector(config, overrides, **options):
    """Returns a model of Detectron2 with random weights, and the detector of an extraction for it."""
    cfg = bua.d2.load_cfg(config, overrides)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    amplify_outputs(model)
    return model, Detectron2Detector(cfg, model, **options)


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_both_engines_extract_the_same_from_c4(images, tmp_path, convention):
    overrides = (*SLIM, "MODEL.BUA.BOX_CONVENTION", convention)
    model, _ = engines("configs/vg_r101.yaml", *overrides[-2:])
    save_checkpoint(tmp_path / "weights.pth", model=model.state_dict())
    np.savez(tmp_path / "boxes.npz", **{str(number): BOXES.numpy() for number in (1, 2)})
    config = ExtractorConfig("configs/vg_r101.yaml", overrides, str(tmp_path / "weights.pth"))
    detectors = [replace(config, engine=engine).load_detector() for engine in ("torch", "detectron2")]
    files = list_images(images)
    for choice in (
        RegionChoice(3, 8),
        RegionChoice(8, 8, regressed=True),
        RegionChoice(boxes=str(tmp_path / "boxes.npz")),
    ):
        *both, (ours_failed, theirs_failed) = zip(
            *(Extractor(detector, choice, batch_size=2)(files) for detector in detectors)
        )
        assert ours_failed.reason == theirs_failed.reason is not None
        for ours, theirs in both:
            for field in ("features", "boxes", "object_scores", "attribute_scores"):
                assert_same(*(torch.from_numpy(getattr(outcome.regions, field)) for outcome in (theirs, ours)))
            for field in ("object_ids", "attribute_ids"):
                np.testing.assert_array_equal(getattr(theirs.regions, field), getattr(ours.regions, field))


@pytest.mark.parametrize("config", [STANDARD, CASCADE, C4])
def test_predictions_are_detectron2s_own(config):
    """The detections that follow from the predictions are those of Detectron2's inference."""
    model, detector = detectron2_detector(config, ZOO)
    image = detector.prepare(random_image(100, 130))
    with torch.no_grad():
        (expected,) = model([as_input(image)])
    expected = expected["instances"]
    (predictions,) = detector.infer([image])
    assert predictions.features.shape == (len(predictions.proposals), detector.feature_dim)
    assert predictions.attribute_probs is None
    assert len(expected) > 5
    for i in range(len(expected)):
        score, class_id = expected.scores[i], expected.pred_classes[i]
        box_distance = (predictions.boxes[:, class_id] - expected.pred_boxes.tensor[i]).abs().amax(dim=1)
        assert ((box_distance < 1e-2) & ((predictions.class_probs[:, class_id] - score).abs() < 1e-4)).any()


def test_features_are_the_box_heads_output_for_the_regions():
    model, detector = detectron2_detector(CASCADE, ZOO)
    seen = {}
    for name in ("fc1", "fc_relu1", "fc_relu2"):
        model.roi_heads.box_head[2].get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    image = detector.prepare(random_image(100, 130))
    (last,) = detector.infer([image], regress=False)
    assert last.boxes is None
    assert_same(last.features, seen["fc_relu2"])
    first = Detectron2Detector(bua.d2.load_cfg(CASCADE, ZOO), model, layer="fc1")
    assert_same(first.infer([image])[0].features, seen["fc_relu1"])
    assert_same(first.infer([image])[0].class_probs, last.class_probs)
    # Boxes that are given are not refined: those of the last stage, when given, have the same features.
    (given,) = detector.infer([image], boxes=[last.proposals])
    assert_same(given.proposals, last.proposals)
    assert_same(given.features, last.features)


def test_models_with_attributes_give_those_of_their_own_inference():
    model, detector = detectron2_detector("configs/vg_r101_fpn.yaml", FPN)
    prepared = [detector.prepare(random_image(*size, seed)) for seed, size in enumerate([(100, 130), (130, 100)])]
    with torch.no_grad():
        expected = [model([as_input(image, boxes=BOXES)])[0] for image in prepared]
    for ours, theirs in zip(detector.infer(prepared), expected):
        for field in FIELDS:
            assert_same(getattr(ours, field), getattr(theirs["objects"], field))
    for ours, theirs in zip(detector.infer(prepared, boxes=[BOXES, BOXES]), expected):
        for field in FIELDS:
            assert_same(getattr(ours, field), getattr(theirs["attributes"], field))
    (bf16,) = Detectron2Detector(bua.d2.load_cfg("configs/vg_r101_fpn.yaml", FPN), model, precision="bf16").infer(
        prepared[:1], boxes=[BOXES]
    )
    assert bf16.features.dtype == torch.float32
    cosine = torch.cosine_similarity(bf16.features, expected[0]["attributes"].features)
    assert 0.98 < float(cosine.min()) < 1 - 1e-6


def test_class_agnostic_boxes_and_rgb_input():
    more = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "INPUT.FORMAT", "RGB"]
    model, detector = detectron2_detector(STANDARD, [*ZOO, *more])
    image = detector.prepare(random_image(100, 130))
    (predictions,) = detector.infer([image])
    assert predictions.boxes.shape == (len(predictions.proposals), 80, 4)
    assert (predictions.boxes == predictions.boxes[:, :1]).all()
    with torch.no_grad():
        (expected,) = model([{**as_input(image), "image": image.image.flip(0)}])
    best = int(expected["instances"].scores.argmax())
    assert predictions.class_probs.max() == pytest.approx(float(expected["instances"].scores[best]), abs=1e-4)


def test_labels_of_the_model_zoo_are_the_metadatas_names():
    opened = open_detector("random", config_file=STANDARD, overrides=ZOO)
    assert opened.objects[:2] == ["person", "bicycle"]
    assert opened.attributes == []
    (regions,) = opened.regions([random_image(100, 130)])
    assert regions.features.shape[1] == 32
    found = found_objects(opened.predictions([random_image(100, 130)])[0], 0, convention=opened.detector.convention)
    assert found


def test_weights_of_the_model_zoo_are_pickles_of_arrays(tmp_path):
    model, _ = detectron2_detector(STANDARD, ZOO)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    arrays["pixel_mean"] = arrays["pixel_std"] = np.ones((3, 1, 1), np.float32)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    opened = open_detector(tmp_path / "model.pkl", config_file=STANDARD, overrides=ZOO)
    for name, value in opened.detector.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_engine_is_chosen_by_the_model(tmp_path, caplog, monkeypatch):
    assert choose_engine(None, "vg_r101.yaml", "random") == "torch"
    assert not caplog.records
    for config in ("vg_r101_fpn.yaml", STANDARD, C4, f"detectron2://{CASCADE}"):
        caplog.clear()
        assert choose_engine(None, config, "random") == "detectron2"
        (record,) = caplog.records
        assert record.message.startswith(f"{config}: the engine is Detectron2")
    (tmp_path / "own.yaml").write_text("MODEL: {ROI_HEADS: {NAME: CascadeROIHeads}}")
    assert choose_engine(None, tmp_path / "own.yaml", "random") == "detectron2"
    (tmp_path / "key.yaml").write_text("_BASE_: vg_r101.yaml\nVIS_PERIOD: 7")
    assert choose_engine(None, tmp_path / "key.yaml", "random") == "detectron2"
    with pytest.raises(InputError, match=r"unknown config key MODEL\.DEVISE; did you mean MODEL\.DEVICE"):
        choose_engine(None, "vg_r101.yaml", "random", ["MODEL.DEVISE", "cpu"])
    monkeypatch.setattr("bua.extraction.engines.has_detectron2", lambda: False)
    with pytest.raises(InputError, match=r"vg_r101_fpn\.yaml: .*build_resnet_fpn_backbone.*is not installed"):
        choose_engine(None, "vg_r101_fpn.yaml", "random")
    with pytest.raises(InputError, match="--engine detectron2: Detectron2 is not installed"):
        choose_engine("detectron2", "vg_r101.yaml", "random")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid"], "and a feature pyramid (FPN) has no single grid; leave out --grid"),
        (
            ["--engine", "detectron2", "MODEL.META_ARCHITECTURE", "AttrRCNN"],
            "--engine detectron2: Detectron2 has no AttrRCNN (MODEL.META_ARCHITECTURE); use --engine torch",
        ),
        (["--compile"], "compile: no part of Detectron2's models"),
        (["--feature-layer", "fc3"], "feature layer 'fc3': the box head FastRCNNConvFCHead has fc1, fc2"),
        (["--engine", "torch"], "the torch engine supports 'build_resnet_backbone'"),
        (
            ["--config-file", C4, "--feature-layer", "fc1"],
            "has one layer of features, the mean over res5",
        ),
        (["--config-file", "vg_r101.yaml", "--feature-layer", "fc1"], "the torch engine's detectors have one layer"),
        (["--config-file", "COCO-Detection/rpn_R_50_FPN_1x.yaml"], "has no proposals with a box head"),
        (["--config-file", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"], "not a YAML file"),
        (["MODEL.RESNETS.DEPTH", "7"], "Detectron2 cannot build this model"),
    ],
)
def test_what_is_impossible_is_said_in_one_line(images, tmp_path, capsys, options, message):
    command = ["extract", "--config-file", "vg_r101_fpn.yaml", "--detector", "random", "--images", str(images)]
    assert main([*command, "--output", str(tmp_path / "out"), *FPN, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_extraction_continues_lists_failures_and_has_labels(images, tmp_path, capsys):
    command = ["extract", "--config-file", STANDARD, "--detector", "random", "--format", "vinvl-tsv", *ZOO]
    command += ["--images", str(images), "--min-boxes", "4", "--max-boxes", "4", "--output", str(tmp_path / "out.tsv")]
    assert main(command) == 1
    assert "2 images written" in capsys.readouterr().out
    assert main(command) == 1
    assert "0 images written" in capsys.readouterr().out
    assert (tmp_path / "out.tsv.failures.jsonl").is_file()
    assert main([*command, "--feature-layer", "fc1"]) == 2
    assert "feature_layer" in capsys.readouterr().err
    # Processes and machines of a cluster get the configuration as a pickle.
    config = ExtractorConfig(STANDARD, tuple(ZOO), "random", RegionChoice(4, 4), engine="detectron2")
    extractor = Extractor.from_config(pickle.loads(pickle.dumps(config)), "cpu")
    written = open_features(tmp_path / "out.tsv")
    for outcome in extractor(list_images(images)):
        if outcome.regions is not None:
            np.testing.assert_array_equal(written[outcome.image.image_id].object_ids, outcome.regions.object_ids)
