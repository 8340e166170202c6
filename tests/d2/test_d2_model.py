"""Compares the two engines, and Detectron2's own parts, on the same weights and images."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import bua.d2
from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import build_detector

CONVENTIONS = ("caffe", "detectron2")
FIELDS = ("proposals", "objectness", "class_probs", "boxes", "features", "attribute_probs")
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr"}
SLIM = [
    *["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RPN.CONV_DIMS", "[16]"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"],
    *["INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "240"],
]
STOCK = [
    *["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.BACKBONE.NAME", "build_resnet_backbone"],
    *["MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"],
    *["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
]


def engines(config, *overrides):
    """Returns Detectron2's model and the torch engine's, with the same random weights."""
    torch.manual_seed(0)
    model = build_model(bua.d2.load_cfg(config, [*SLIM, *overrides]))
    detector = build_detector(load_cfg(config, [*SLIM, *overrides]))
    amplify_outputs(model)
    assert list(model.state_dict()) == list(detector.state_dict())
    detector.load_state_dict(model.state_dict())
    return model, detector


def amplify_outputs(model):
    """Increases the weights of the output layers, because with their small initial weights all outputs are alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("rpn_head", "predictor")):
                parameter.mul_(5)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_input(image, **more):
    return {
        "image": image.image,
        "width": image.width,
        "height": image.height,
        "scale": image.scale,
        "image_id": image.image_id,
        **more,
    }


def assert_same(ours, theirs):
    """Asserts that two tensors differ by at most 1e-4 of the largest value."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) if len(theirs) else 0)


def training_batch(detector):
    batch = []
    for seed, (height, width) in enumerate([(90, 120), (120, 90), (100, 100)]):
        image = detector.prepare(random_image(height, width, seed), image_id=seed)
        number = 2 - seed  # the last has no objects
        image.boxes = (torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85]]) * image.scale[0])[:number]
        image.classes = torch.tensor([1, 6])[:number]
        image.attributes = torch.tensor([[0, 4, -1], [-1, -1, -1]])[:number]
        batch.append(image)
    return batch


def with_instances(batch):
    inputs = []
    for image in batch:
        instances = Instances(tuple(image.image.shape[-2:]), gt_boxes=Boxes(image.boxes))
        instances.gt_classes, instances.gt_attributes = image.classes, image.attributes
        inputs.append(as_input(image, instances=instances))
    return inputs


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("config", ["configs/vg_r101.yaml", "configs/vg_r50.yaml"])
def test_engines_predict_the_same(config, convention):
    overrides = ["MODEL.BUA.BOX_CONVENTION", convention]
    model, detector = engines(config, *overrides)
    model.eval()
    boxes = torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85], [0, 0, 0, 0]])
    images = [detector.prepare(random_image(100, 130, seed), seed) for seed in (1, 2)]
    with torch.no_grad():
        outputs = model([as_input(images[0], boxes=boxes), as_input(images[1])])
    proposed = detector.infer(images)
    (given,) = detector.infer(images[:1], boxes=[boxes])
    assert len(proposed[0].proposals) > 5
    for theirs, ours in [*((o["objects"], p) for o, p in zip(outputs, proposed)), (outputs[0]["attributes"], given)]:
        assert (theirs.width, theirs.height) == (130, 100)
        for field in FIELDS:
            assert_same(getattr(theirs, field), getattr(ours, field))
    assert "attributes" not in outputs[1]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_engines_compute_the_same_losses(convention):
    model, detector = engines("configs/vg_r101.yaml", "MODEL.BUA.BOX_CONVENTION", convention)
    batch = training_batch(detector)
    torch.manual_seed(3)
    ours = detector.train()(batch)
    torch.manual_seed(3)
    theirs = model.train()(with_instances(batch))
    assert set(theirs) == set(ours) == LOSSES
    for name in LOSSES:
        assert theirs[name].item() == pytest.approx(ours[name].item(), rel=1e-4), name
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in detector.parameters()]
    assert not model.backbone.res4[0].shortcut.weight.requires_grad


@pytest.mark.parametrize("config", ["configs/vg_r101.yaml", "configs/vg_r101_fpn.yaml"])
def test_feature_maps_are_bfloat16_in_mixed_precision(config):
    model = build_model(bua.d2.load_cfg(config, [*SLIM, "MODEL.FPN.OUT_CHANNELS", "16"]))
    with torch.autocast("cpu", torch.bfloat16):
        feature_maps = model.train().backbone(torch.randn(1, 3, 64, 64))
    assert {feature_map.dtype for feature_map in feature_maps.values()} == {torch.bfloat16}


def test_detections_have_the_fields_of_their_region():
    model, detector = engines("configs/vg_r101.yaml")
    image = detector.prepare(random_image(100, 130))
    with torch.no_grad():
        (output,) = model.eval()([as_input(image)])
    found, regions = output["instances"], output["objects"]
    assert found.image_size == (100, 130)
    assert len(found) > 0
    for i in range(len(found)):
        (region,) = torch.nonzero((regions.proposals == found.proposal_boxes.tensor[i]).all(1)).squeeze(1)
        class_id = found.pred_classes[i]
        assert found.scores[i] == regions.class_probs[region, class_id]
        assert torch.equal(found.pred_boxes.tensor[i], regions.boxes[region, class_id])
        assert torch.equal(found.features[i], regions.features[region])
        assert found.attribute_scores[i] == regions.attribute_probs[region].max()
        assert found.attribute_classes[i] == regions.attribute_probs[region].argmax()


def test_the_detectron2_convention_agrees_with_detectron2():
    everything = [
        *["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000"],
        *["MODEL.RPN.CONV_DIMS", "[-1]", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"],
    ]
    ours, detector = engines("configs/vg_r50.yaml", *everything)
    stock = build_model(bua.d2.load_cfg("configs/vg_r50.yaml", [*SLIM, *everything, *STOCK]))
    weights = {name: value for name, value in ours.state_dict().items() if "attribute" not in name}
    stock.load_state_dict(weights)

    image = as_input(detector.prepare(random_image(100, 130)))
    with torch.no_grad():
        (expected,), (output,) = stock.eval()([image]), ours.eval()([image])
        images = ours.preprocess_image([image])
        (theirs,), _ = stock.proposal_generator(images, stock.backbone(images.tensor))
        (mine,), _ = ours.proposal_generator(images, ours.backbone(images.tensor))
    assert_same(mine.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
    assert_same(mine.objectness_logits, theirs.objectness_logits)
    found, expected = output["instances"], expected["instances"]
    assert len(expected) > 5
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert_same(found.scores, expected.scores)
    assert_same(found.pred_boxes.tensor, expected.pred_boxes.tensor)

    inputs = with_instances(training_batch(detector))
    with EventStorage():
        expected, losses = stock.train()(inputs), ours.train()(inputs)
    for name in expected:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name


def test_heads_work_with_detectron2s_own_meta_architecture():
    model, detector = engines("configs/vg_r50.yaml")
    stock = build_model(bua.d2.load_cfg("configs/vg_r50.yaml", [*SLIM, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]))
    stock.load_state_dict(model.state_dict())
    image = as_input(detector.prepare(random_image(100, 130)))
    with torch.no_grad():
        (expected,), (output,) = model.eval()([image]), stock.eval()([image])
        # These boxes are in network pixels, while those of AttributeRCNN are in pixels of the original image.
        boxes = output["instances"].proposal_boxes
        given = Instances((1, 1), pred_boxes=boxes, pred_classes=output["instances"].pred_classes)
        (at_boxes,) = stock.inference([image], detected_instances=[given], do_postprocess=False)
    assert set(output) == {"instances"}
    for field in ("scores", "features", "attribute_scores"):
        assert_same(output["instances"].get(field), expected["instances"].get(field))
    assert_same(output["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
    assert_same(at_boxes.features, output["instances"].features)
    assert torch.equal(at_boxes.attribute_classes, output["instances"].attribute_classes)


def test_standard_heads_add_attributes_to_fpn():
    overrides = [
        *SLIM,
        "MODEL.FPN.OUT_CHANNELS",
        "16",
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        "32",
        "MODEL.RPN.CONV_DIMS",
        "[-1]",
    ]
    torch.manual_seed(0)
    model = build_model(bua.d2.load_cfg("configs/vg_r101_fpn.yaml", overrides))
    amplify_outputs(model)
    stock_heads = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
    stock = build_model(bua.d2.load_cfg("configs/vg_r101_fpn.yaml", [*overrides, *stock_heads]))
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if "attribute" not in k})
    detector = build_detector(load_cfg("configs/vg_r50.yaml", SLIM))

    inputs = with_instances(training_batch(detector))
    with EventStorage():
        torch.manual_seed(0)
        losses = model.train()(inputs)
        torch.manual_seed(0)
        expected = stock.train()(with_instances(training_batch(detector)))
    assert set(losses) == LOSSES
    for name in expected:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
    losses["loss_attr"].backward()
    assert model.roi_heads.attribute_predictor.attr_score.weight.grad.abs().sum() > 0
    with EventStorage():
        assert model(inputs[2:])["loss_attr"].item() == 0

    image = as_input(detector.prepare(random_image(100, 130)), boxes=torch.tensor([[10.0, 10, 90, 80]]))
    with torch.no_grad():
        (output,), (expected,) = model.eval()([image]), stock.eval()([image])
    assert output["objects"].features.shape[1] == 32
    assert output["attributes"].attribute_probs.shape == (1, 5)
    found, expected = output["instances"], expected["instances"]
    assert len(expected) > 5
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert_same(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert found.attribute_scores.shape == (len(found),)


def test_detectron2s_default_predictor_runs_the_model(tmp_path):
    model, detector = engines("configs/vg_r50.yaml")
    weights = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, weights)
    overrides = [*SLIM, "MODEL.WEIGHTS", str(weights), "DATASETS.TEST", "()"]
    predictor = DefaultPredictor(bua.d2.load_cfg("configs/vg_r50.yaml", overrides))
    image = random_image(100, 130)
    predictions = predictor(image)
    (expected,) = detector.predict([image])
    for field in FIELDS:
        assert_same(getattr(predictions["objects"], field), getattr(expected, field))
    assert predictions["instances"].has("features")


def test_pretrained_backbones_load_into_backbone_and_heads(tmp_path):
    """Detectron2's ImageNet weights are a pickle with names without prefix, which are matched by their ends."""
    model, _ = engines("configs/vg_r50.yaml")
    own = model.state_dict()
    stages = ("backbone.", "roi_heads.res5")
    parts = {name: value for name, value in own.items() if name.startswith(stages)}
    pretrained = {
        name.removeprefix("backbone.").removeprefix("roi_heads."): np.random.default_rng(0).random(tuple(value.shape))
        for name, value in parts.items()
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": pretrained, "__author__": "bua", "matching_heuristics": True}))
    DetectionCheckpointer(model).load(str(path))
    for name, value in model.state_dict().items():
        if name in parts:
            short = name.removeprefix("backbone.").removeprefix("roi_heads.")
            np.testing.assert_allclose(value.numpy(), pretrained[short], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("vg_r101", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "needs MODEL.META_ARCHITECTURE AttributeRCNN"),
        ("vg_r101", ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], "needs MODEL.PROPOSAL_GENERATOR.NAME BUAProposal"),
        ("vg_r101", ["MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"], "needs MODEL.ANCHOR_GENERATOR.NAME"),
        ("vg_r101", ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "STEM_POOL is 'caffe', which needs MODEL.BACK"),
        ("vg_r101_fpn", ["MODEL.BUA.BOX_CONVENTION", "caffe"], "BOX_CONVENTION is 'caffe'"),
        ("vg_r101_fpn", ["MODEL.MASK_ON", "True"], "MODEL.MASK_ON is True"),
        ("vg_r101", ["MODEL.MASK_ON", "True"], "MODEL.MASK_ON is True; AttributeRes5ROIHeads supports False"),
        ("vg_r101", ["MODEL.RPN.CONV_DIMS", "[8, 8]"], "BUAProposalGenerator supports a list of 1, not of 2"),
        ("vg_r101", ["MODEL.RPN.HEAD_NAME", "Foo"], "HEAD_NAME is 'Foo'; BUAProposalGenerator supports"),
        ("vg_r101", ["MODEL.ROI_HEADS.IOU_LABELS", "[1, 0]"], "AttributeRes5ROIHeads supports"),
        ("vg_r101", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"], "CLS_AGNOSTIC_BBOX_REG is True"),
    ],
)
def test_the_error_names_parts_that_do_not_support_the_configuration(config, overrides, message):
    with pytest.raises(InputError, match=message):
        build_model(bua.d2.load_cfg(f"configs/{config}.yaml", [*SLIM, *overrides]))


def test_detectron2s_own_parts_build_what_bua_s_do_not():
    overrides = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.RPN.CONV_DIMS", "[8, 8]"]
    model = build_model(bua.d2.load_cfg("configs/vg_r50.yaml", [*SLIM, *overrides]))
    assert len(model.proposal_generator.rpn_head.conv) == 2


def test_what_detectron2_cannot_build_is_one_line():
    cfg = bua.d2.load_cfg("configs/vg_r50.yaml", [*SLIM, "MODEL.RESNETS.OUT_FEATURES", "['res9']", *STOCK])
    with pytest.raises(InputError, match="config: Detectron2 cannot build this model"):
        bua.d2.Trainer.build_model(cfg)


def test_the_torch_engine_does_not_support_fpn():
    with pytest.raises(
        InputError, match=r"MODEL\.BACKBONE\.NAME is 'build_resnet_fpn_backbone'; the torch engine supports"
    ):
        build_detector(load_cfg("configs/vg_r101_fpn.yaml"))
