import cv2
import numpy as np
import pytest
import torch

from bua.checkpoint import load_weights
from bua.config import get_cfg, load_cfg
from bua.errors import InputError
from bua.io.images import read_image
from bua.modeling import build_detector
from bua.structures import DetectorInput

SLIM = [
    *["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.DEPTH", "50", "MODEL.RPN.CONV_DIMS", "[16]"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", "20"],
]


def slim_detector(*overrides, norm="GN"):
    torch.manual_seed(0)
    return build_detector(load_cfg("configs/vg_r101.yaml", [*SLIM, "MODEL.RESNETS.NORM", norm, *overrides]))


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def training_batch(detector, sizes=((90, 120), (120, 90))):
    batch = []
    for i, (height, width) in enumerate(sizes):
        image = detector.prepare(random_image(height, width, i), image_id=i)
        scale = image.scale[0]
        image.boxes = torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85]]) * scale
        image.classes = torch.tensor([1, 6])
        image.attributes = torch.tensor([[0, 4, -1], [-1, -1, -1]])
        batch.append(image)
    return batch


@pytest.fixture(scope="module")
def public_port(shared_data):
    """The golden detector in Hugging Face's layout, under bua's names, and what the port computes with it."""
    folder = shared_data / "golden" / "frcnn_slim"
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.PIXEL_MEAN = [102.9801, 115.9465, 122.7717]
    model.BACKBONE.FREEZE_AT = 0
    resnets = model.RESNETS
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS, resnets.WIDTH_PER_GROUP = 16, 64, 16
    resnets.NORM, resnets.RES5_DILATION = "BN", 2
    model.ANCHOR_GENERATOR.SIZES = [[64, 128, 256, 512]]
    model.RPN.CONV_DIMS, model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = [128], 2000, 100
    model.ROI_HEADS.NUM_CLASSES, model.ROI_BOX_HEAD.POOLER_TYPE = 120, "ROIPool"
    model.BUA.STEM_POOL = model.BUA.RESIZE = "caffe"
    model.BUA.ATTRIBUTES.NUM_CLASSES = 40
    model.BUA.ATTRIBUTES.EMBEDDING_DIM, model.BUA.ATTRIBUTES.HIDDEN_DIM = 64, 128
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 240, 400
    detector = build_detector(cfg).eval()
    assert load_weights(detector, folder / "pytorch_model.bin") == ([], [], [])
    golden = np.load(folder / "outputs.npz")
    return detector, golden, read_image(shared_data / "images" / str(golden["image"]))


def assert_close(actual, expected):
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@torch.no_grad()
def test_every_stage_agrees_with_the_public_port(public_port):
    detector, golden, image = public_port
    inputs = detector.prepare(image)
    pixels = detector._stack([inputs])
    np.testing.assert_allclose(pixels[0, :, :8, :8].permute(1, 2, 0), golden["input_top_left"], atol=1e-4)
    feature_map = detector.backbone(pixels)
    assert feature_map.shape == tuple(golden["res4_shape"])
    anchors, objectness, deltas = detector.proposal_generator(feature_map)
    rows, columns = feature_map.shape[-2:]
    assert_close(objectness.view(rows, columns, 12).permute(2, 0, 1), golden["objectness_logits"])
    deltas_by_channel = deltas.view(rows, columns, 12, 4).permute(2, 3, 0, 1).reshape(48, rows, columns)
    assert_close(deltas_by_channel, golden["anchor_deltas"])
    sizes = [inputs.image.shape[-2:]]
    ((proposals, _),) = detector.proposal_generator.propose(anchors, objectness, deltas, sizes, [1.0])
    assert_close(proposals, golden["proposals"])
    features = detector.roi_heads.features(feature_map, [proposals], 16)
    assert_close(features, golden["proposal_features"])
    logits, box_deltas = detector.roi_heads.box_predictor(features)
    assert_close(logits, golden["object_logits"])
    assert_close(box_deltas, golden["box_deltas"])
    attribute_logits = detector.roi_heads.attribute_predictor(features, logits.argmax(dim=1))
    assert_close(attribute_logits, golden["attribute_logits"])


def test_predict_agrees_with_the_public_port(public_port):
    detector, golden, image = public_port
    (predictions,) = detector.predict([image])
    logits = torch.from_numpy(golden["object_logits"])
    assert_close(predictions.class_probs, logits.softmax(1)[:, :-1].numpy())
    attribute_logits = torch.from_numpy(golden["attribute_logits"])
    assert_close(predictions.attribute_probs, attribute_logits.softmax(1)[:, :-1].numpy())
    assert_close(predictions.proposals, golden["proposals"] / golden["im_scale"])
    assert_close(predictions.features, golden["proposal_features"])


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_predictions_do_not_depend_on_the_batch(convention):
    detector = slim_detector(
        *["MODEL.BUA.BOX_CONVENTION", convention, "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"]
    )
    images = [random_image(60, 80, 1), random_image(80, 60, 2), random_image(60, 80, 3)]
    together = detector.predict(images)
    for image, from_batch in zip(images, together):
        (alone,) = detector.predict([image])
        assert (alone.width, alone.height) == (from_batch.width, from_batch.height) == image.shape[1::-1]
        for name in ("proposals", "objectness", "class_probs", "boxes", "features", "attribute_probs"):
            torch.testing.assert_close(getattr(alone, name), getattr(from_batch, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_predictions_lie_in_the_image_and_have_the_stated_shapes(convention):
    detector = slim_detector("MODEL.BUA.BOX_CONVENTION", convention, "INPUT.MIN_SIZE_TEST", "128")
    (predictions,) = detector.predict([random_image(50, 90)])
    number = len(predictions.proposals)
    assert 0 < number <= 20
    assert predictions.class_probs.shape == (number, 7)
    assert predictions.boxes.shape == (number, 7, 4)
    assert predictions.features.shape == (number, 128)
    assert predictions.attribute_probs.shape == (number, 5)
    assert predictions.features.min() >= 0
    assert (predictions.class_probs.sum(1) <= 1).all()
    limit = torch.tensor([90.0, 50, 90, 50]) - int(convention == "caffe")
    assert (predictions.boxes >= 0).all()
    assert (predictions.boxes <= limit).all()
    assert (predictions.objectness.diff() <= 0).all()


def test_given_boxes_replace_the_proposals_in_their_order():
    detector = slim_detector("INPUT.MIN_SIZE_TEST", "128")
    image = random_image(100, 120)
    boxes = torch.tensor([[70.0, 10, 110, 90], [0, 0, 50, 50]])
    (given,) = detector.predict([image], [boxes])
    assert torch.equal(given.proposals, boxes)
    (swapped,) = detector.predict([image], [boxes.flip(0)])
    torch.testing.assert_close(given.features, swapped.features.flip(0))
    (none,) = detector.predict([image], [torch.zeros(0, 4)])
    assert none.features.shape == (0, 128)


def test_proposals_and_given_boxes_share_a_feature_map():
    detector = slim_detector("INPUT.MIN_SIZE_TEST", "128").eval()
    batch = [detector.prepare(random_image(*size, seed)) for seed, size in enumerate([(90, 120), (120, 90)])]
    boxes = [torch.tensor([[5.0, 5, 60, 60], [30, 20, 80, 85]]), torch.zeros(0, 4)]
    runs = []
    handle = detector.backbone.register_forward_hook(lambda *_: runs.append(1))
    proposed, given = detector.infer_both(batch, boxes)
    handle.remove()
    assert len(runs) == 2  # one for each size of images
    for ours, expected in zip([*proposed, *given], [*detector.infer(batch), *detector.infer(batch, boxes)]):
        for field in ("proposals", "class_probs", "boxes", "features", "attribute_probs"):
            assert torch.equal(getattr(ours, field), getattr(expected, field))


def test_losses_reach_what_learns_and_nothing_else():
    detector = slim_detector("INPUT.MIN_SIZE_TEST", "128").train()
    losses = detector(training_batch(detector))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr"}
    sum(losses.values()).backward()
    without = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert without == frozen
    assert all(
        name.startswith(("backbone.stem", "backbone.res2", "backbone.res3", "backbone.res4.0.shortcut"))
        for name in frozen
    )
    assert "backbone.res4.0.shortcut.weight" in frozen
    assert "backbone.res4.0.conv1.weight" not in frozen


def test_a_batch_without_objects_gives_finite_losses():
    detector = slim_detector("INPUT.MIN_SIZE_TEST", "128").train()
    (image,) = training_batch(detector, sizes=[(100, 100)])
    image.boxes, image.classes = image.boxes[:0], image.classes[:0]
    image.attributes = image.attributes[:0]
    losses = detector([image])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"].item() == losses["loss_attr"].item() == losses["loss_rpn_loc"].item() == 0


def test_it_learns_two_images():
    overrides = ["MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.BUA.FREEZE", "[]", "MODEL.RESNETS.RES5_DILATION", "1"]
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "4"]
    few = ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", "200", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"]
    few += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "INPUT.MIN_SIZE_TEST", "96"]
    detector = slim_detector(*overrides, *sizes, *few).train()
    images, batch = [], []
    for i, colour in enumerate([(20, 20, 220), (220, 20, 20)]):
        image = np.full((96, 128, 3), 90, np.uint8)
        cv2.rectangle(image, (20 + 30 * i, 20), (70 + 30 * i, 70), colour, -1)
        inputs = detector.prepare(image)
        inputs.boxes = torch.tensor([[20.0 + 30 * i, 20, 70 + 30 * i, 70]])
        inputs.classes, inputs.attributes = torch.tensor([i]), torch.tensor([[i + 2, -1]])
        images.append(image)
        batch.append(inputs)
    optimizer = torch.optim.Adam(detector.parameters(), lr=4e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sum(detector(batch).values()).backward()
        optimizer.step()
    for i, predictions in enumerate(detector.predict(images)):
        best = predictions.class_probs.max(dim=1).values.argmax()
        assert predictions.class_probs[best].argmax() == i
        assert predictions.attribute_probs[best].argmax() == i + 2
        assert (predictions.boxes[best, i] - batch[i].boxes[0]).abs().max() < 12


def test_the_originals_recipe_builds_at_its_real_size():
    detector = build_detector(load_cfg("configs/vg_r101.yaml", ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    assert shapes["backbone.res4.22.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["proposal_generator.rpn_head.objectness_logits.weight"] == (12, 512, 1, 1)
    assert shapes["proposal_generator.rpn_head.anchor_deltas.weight"] == (48, 512, 1, 1)
    assert shapes["roi_heads.res5.0.shortcut.weight"] == (2048, 1024, 1, 1)
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (1601, 2048)
    assert shapes["roi_heads.box_predictor.bbox_pred.weight"] == (6400, 2048)
    assert shapes["roi_heads.attribute_predictor.cls_embedding.weight"] == (1601, 256)
    assert shapes["roi_heads.attribute_predictor.fc_attr.weight"] == (512, 2304)
    assert shapes["roi_heads.attribute_predictor.attr_score.weight"] == (401, 512)
    res5 = [block.conv2 for block in detector.roi_heads.res5]
    assert all(conv.dilation == conv.padding == (2, 2) and conv.stride == (1, 1) for conv in res5)


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.RESNETS.DEPTH", "18"), ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "RoiPool")]
)
def test_what_the_engine_lacks_is_named(key, value):
    with pytest.raises(InputError, match=key):
        build_detector(load_cfg("configs/vg_r101.yaml", [key, value]))


def test_freezing_a_stage_freezes_its_statistics():
    detector = slim_detector("INPUT.MIN_SIZE_TEST", "128", norm="BN").train()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    detector(training_batch(detector))
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(name.startswith(("backbone.stem", "backbone.res2", "backbone.res3")) for name in changed)


def test_input_is_padded_behind_its_mean():
    detector = slim_detector()
    small = DetectorInput(torch.full((3, 4, 4), 100.0), 4, 4, (1.0, 1.0))
    large = DetectorInput(torch.full((3, 6, 8), 100.0), 8, 6, (1.0, 1.0))
    stacked = detector._stack([small, large])
    assert stacked.shape == (2, 3, 6, 8)
    assert (stacked[0, :, 4:] == 0).all()
    assert (stacked[0, :, :, 4:] == 0).all()
    torch.testing.assert_close(stacked[1, :, 0, 0], 100 - torch.tensor([102.9801, 115.9465, 122.7717]))
