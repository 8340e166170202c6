"""One detector in every released layout loads to the same tensors."""

import pytest
import released_layouts as released
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from bua.checkpoint import identify, load_checkpoint, load_weights
from bua.config import get_cfg, load_cfg
from bua.errors import InputError
from bua.modeling import build_detector
from bua.modeling.anchors import cell_anchors
from bua.modeling.backbone import ResNetC4
from bua.weights.layouts import ANCHORS, DETECTRON2_SIZES, LayoutError, find_layout, to_bua

SLIM = [
    *["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RPN.CONV_DIMS", "[16]"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.BUA.ATTRIBUTES.EMBEDDING_DIM", "16", "MODEL.BUA.ATTRIBUTES.HIDDEN_DIM", "32"],
]
CAFFE_ANCHORS = cell_anchors(released.SIZES, released.RATIOS, "caffe")
D2_ANCHORS = cell_anchors(released.SIZES, released.RATIOS, "detectron2")


def slim_detector(*overrides) -> nn.Module:
    return build_detector(load_cfg("configs/vg_r101.yaml", [*SLIM, *overrides]))


@pytest.fixture(scope="module")
def slim() -> dict[str, torch.Tensor]:
    """Random weights of a slim detector under bua's names."""
    torch.manual_seed(0)
    return {name: torch.rand_like(value) + 0.5 for name, value in slim_detector().state_dict().items()}


@pytest.fixture(scope="module")
def full() -> dict[str, torch.Tensor]:
    """Names and shapes of the real ResNet-101."""
    return meta_detector("configs/vg_r101.yaml").state_dict()


def meta_detector(config: str) -> nn.Module:
    """Returns a detector at its real size, whose tensors have no values."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr("bua.config.DEVICES", ("meta",))
        return build_detector(load_cfg(config, ["MODEL.DEVICE", "meta"]))


def without_attributes(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if "attribute_predictor" not in name}


def without_no_attribute(weights: dict) -> dict:
    return {name: value[:-1] if ".attr_score." in name else value for name, value in weights.items()}


def whole(weights: dict) -> dict:
    return weights


# For each layout: the function that writes it, the suffix of the file, the part of the detector in it, its anchors.
LAYOUTS = {
    "caffe": (released.caffe, "caffemodel", whole, CAFFE_ANCHORS),
    "milvlg-caffe": (lambda weights, _: released.milvlg(weights), "pth", whole, CAFFE_ANCHORS),
    "airsplay": (lambda weights, _: released.airsplay(weights), "pkl", whole, D2_ANCHORS),
    "grid-feats": (lambda weights, _: released.grid_feats(weights), "pth", without_no_attribute, D2_ANCHORS),
    "vinvl": (lambda weights, _: released.vinvl(weights), "pth", whole, CAFFE_ANCHORS),
    "caffe2": (released.caffe2, "pkl", released.backbone_of, None),
    "caffe-imagenet": (
        released.caffe_imagenet,
        "caffemodel",
        released.backbone_of,
        None,
    ),
    "torchvision": (released.torchvision, "pth", released.backbone_of, None),
    "bua": (lambda weights, _: weights, "pth", whole, None),
}


def save(path, weights: dict) -> None:
    if path.suffix == ".caffemodel":
        released.save_caffemodel(path, weights)
    elif path.suffix == ".pkl":
        released.save_pickle(path, weights)
    else:
        torch.save({"model": weights, "iteration": 3}, path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_tensors(layout, slim, tmp_path):
    write, suffix, part, anchors = LAYOUTS[layout]
    path = tmp_path / f"weights.{suffix}"
    save(path, write(slim, 50))
    assert identify(path).name == layout
    loaded = load_checkpoint(path)
    found = loaded.pop(ANCHORS, None)
    assert (found is None) == (anchors is None)
    if anchors is not None:
        torch.testing.assert_close(found, anchors)
    expected = part(slim)
    left_over = loaded.keys() - expected.keys()
    assert left_over <= {"conv1_b", "fc1000_w", "fc1000_b", "fc.weight", "fc.bias"}
    for name, value in expected.items():
        torch.testing.assert_close(
            loaded[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_shapes_of_the_real_network(layout, full):
    write, _, part, _ = LAYOUTS[layout]
    converted = to_bua(write(full, 101))
    for name, value in part(full).items():
        assert converted[name].shape == value.shape, name


def test_size_of_the_real_network(full):
    learned = {name: value for name, value in released.backbone_of(full).items() if "running" not in name}
    # torchvision's ResNet-101 has 44,549,160 parameters, 2,049,000 of them in its classifier.
    assert sum(value.numel() for value in learned.values()) == 44_549_160 - 2_049_000
    assert len(full) == 104 * 5 + 3 * 2 + 2 * 2 + 1 + 2 * 2


def test_layers_of_the_real_caffemodel(full):
    """Their numbers and shapes are those of the original's train.prototxt."""
    blobs = released.caffe(full, 101)
    layers = {name.rpartition(".")[0] for name in blobs}
    assert sum(layer.startswith("bn") for layer in layers) == 104
    assert sum(layer.startswith("scale") for layer in layers) == 104
    assert sum(layer == "conv1" or layer.startswith("res") for layer in layers) == 107 - 3
    assert {layer for layer in layers if not layer.startswith(("bn", "scale", "res", "conv1"))} == {
        *["rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred", "cls_score", "bbox_pred"],
        *["cls_embedding", "fc_attr", "attr_score"],
    }
    expected = {
        "conv1.0": (64, 3, 7, 7),
        "bn_conv1.0": (64,),
        "scale3b3_branch2a.1": (128,),
        "res4b22_branch2b.0": (256, 256, 3, 3),
        "res5a_branch1.0": (2048, 1024, 1, 1),
        "rpn_conv/3x3.0": (512, 1024, 3, 3),
        "rpn_cls_score.1": (24,),
        "rpn_bbox_pred.0": (48, 512, 1, 1),
        "cls_score.0": (1601, 2048),
        "bbox_pred.0": (6404, 2048),
        "cls_embedding.0": (1601, 256),
        "fc_attr.0": (512, 2304),
        "attr_score.0": (401, 512),
    }
    assert {name: tuple(blobs[name].shape) for name in expected} == expected


def test_names_of_the_public_port(shared_data):
    """``released.airsplay`` has the same names as the real layout of Hugging Face."""
    names = torch.load(shared_data / "golden" / "frcnn_slim" / "pytorch_model.bin", weights_only=True).keys()
    assert released.airsplay(slim_detector().state_dict()).keys() == names


def test_names_of_torchvision():
    with torch.device("meta"):
        model = torchvision.models.resnet101()
    full = meta_detector("configs/vg_r101.yaml").state_dict()
    assert released.torchvision(full, 101).keys() == model.state_dict().keys()


@torch.no_grad()
def test_torchvision_gives_the_same_feature_map(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet50().eval()
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    detector = nn.ModuleDict({"backbone": ResNetC4(cfg)}).eval()
    report = load_weights(detector, tmp_path / "resnet50.pth")
    assert not report.missing
    image = torch.rand(1, 3, 64, 96) * 255
    bgr_mean, bgr_std = (torch.tensor(v).view(3, 1, 1) for v in ([103.53, 116.28, 123.675], [57.375, 57.12, 58.395]))
    rgb_mean, rgb_std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    rgb = (image.flip(1) / 255 - rgb_mean) / rgb_std
    expected = reference.maxpool(reference.relu(reference.bn1(reference.conv1(rgb))))
    expected = reference.layer3(reference.layer2(reference.layer1(expected)))
    torch.testing.assert_close(detector["backbone"]((image - bgr_mean) / bgr_std), expected, rtol=1e-4, atol=1e-4)


def forward_version_2(weights: dict, prefix: str, blocks: int, x: torch.Tensor, stride: int, activated: bool = False):
    """Computes a stage of MILVLG's ResNet-152 (BottleneckBlockv2 in its bua/caffe/modeling) with its names."""

    def activate(name, x):
        parts = (weights[f"{prefix}.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *parts, eps=2e-5))

    for i in range(blocks):
        step = stride if i == 0 else 1
        active = x if activated and i == 0 else activate(f"{i}.norm", x)
        out = F.conv2d(active, weights[f"{prefix}.{i}.conv1.weight"])
        out = F.conv2d(activate(f"{i}.conv2.norm", out), weights[f"{prefix}.{i}.conv2.weight"], stride=step, padding=1)
        out = F.conv2d(activate(f"{i}.conv3.norm", out), weights[f"{prefix}.{i}.conv3.weight"])
        if i == 0:
            x = F.conv2d(active, weights[f"{prefix}.{i}.shortcut.weight"], stride=step)
        x = out + x
    return x


@torch.no_grad()
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_milvlgs_resnet_of_version_2(tmp_path, norm):
    overrides = [*SLIM, "MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.DEPTH", "152"]
    detector = build_detector(load_cfg("configs/vg_r152_milvlg.yaml", overrides)).eval()
    torch.manual_seed(0)
    weights = {
        name: torch.rand_like(value) + 0.5 if "norm" in name else torch.randn_like(value) * 0.1
        for name, value in detector.state_dict().items()
        if value.is_floating_point()
    }
    file = released.milvlg_version_2(weights)
    assert {"backbone.stem.norm.weight", "roi_heads.res5.0.norm.bias", "roi_heads.res5_bn.running_var"} <= file.keys()
    torch.save({"model": file}, tmp_path / "bua-caffe-frcn-r152.pth")
    assert not any(load_weights(detector, tmp_path / "bua-caffe-frcn-r152.pth"))

    def normalise(name, x):
        return F.batch_norm(
            x, *(file[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=2e-5
        )

    image = torch.rand(1, 3, 64, 80) * 255
    x = F.conv2d(normalise("backbone.stem.norm", image), file["backbone.stem.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(normalise("backbone.stem.conv1.norm", x)), 3, 2, ceil_mode=True)
    for stage, blocks, stride in ((2, 3, 1), (3, 8, 2), (4, 36, 2)):
        x = forward_version_2(file, f"backbone.res{stage}", blocks, x, stride)
    x = F.relu(normalise("roi_heads.res5.0.norm", x))
    torch.testing.assert_close(detector.backbone(image), x, rtol=1e-4, atol=1e-4 * float(x.max()))
    x = forward_version_2(file, "roi_heads.res5", 3, x, 2, activated=True)
    x = F.relu(normalise("roi_heads.res5_bn", x))
    torch.testing.assert_close(
        detector.roi_heads.res5(detector.backbone(image)), x, rtol=1e-4, atol=1e-4 * float(x.max())
    )


def test_backbones_with_detectron2s_names(slim):
    """Detectron2's tools/convert-torchvision-to-d2.py writes them with the classifier in the stem, and for RGB."""
    names = {name: name.removeprefix("backbone.").removeprefix("roi_heads.") for name in released.backbone_of(slim)}
    file = {names[name]: value for name, value in released.backbone_of(slim).items()}
    file["stem.conv1.weight"] = file["stem.conv1.weight"].flip(1)
    file["stem.fc.weight"] = torch.zeros(3, 8)
    assert find_layout(file).name == "detectron2-torchvision"
    converted = to_bua(file)
    assert all(torch.equal(converted[name], slim[name]) for name in names)
    del file["stem.fc.weight"]
    assert find_layout(file).name == "detectron2-backbone"
    assert torch.equal(to_bua(file)["backbone.stem.conv1.weight"], slim["backbone.stem.conv1.weight"].flip(1))


def test_statistics_that_detectron_folded_into_the_scale(slim):
    """A normalisation that has only scale and bias applies exactly these after loading."""
    file = {
        name.replace("_bn_gamma", "_bn_s").replace("_bn_beta", "_bn_b"): value
        for name, value in released.caffe2(slim, 50).items()
        if "running" not in name
    }
    detector = slim_detector()
    detector.load_state_dict(to_bua(file | {"conv1_w_momentum": torch.zeros(1)}), strict=False)
    norm = detector.backbone.res3[1].conv2.norm
    x = torch.rand(1, 8, 2, 2)
    scale, bias = (slim[f"backbone.res3.1.conv2.norm.{part}"].view(-1, 1, 1) for part in ("weight", "bias"))
    torch.testing.assert_close(norm(x), x * scale + bias)


def test_a_bias_before_a_normalisation_is_kept(slim):
    """MSRA's ResNet-50 has such a bias in conv1."""
    blobs = released.caffe(slim, 50)
    bias = torch.rand(8)
    mean = to_bua(blobs | {"conv1.1": bias})["backbone.stem.conv1.norm.running_mean"]
    torch.testing.assert_close(mean, slim["backbone.stem.conv1.norm.running_mean"] - bias)


def test_statistics_of_no_images(slim):
    blobs = released.caffe(slim, 50)
    blobs["bn_conv1.2"] = torch.zeros(1)
    assert (to_bua(blobs)["backbone.stem.conv1.norm.running_var"] == 0).all()


@pytest.mark.parametrize(("shapes", "double"), [("old", False), ("new", True)])
def test_other_forms_of_a_caffemodel(slim, tmp_path, shapes, double):
    released.save_caffemodel(tmp_path / "a.caffemodel", released.caffe(slim, 50), shapes=shapes, double=double)
    loaded = load_checkpoint(tmp_path / "a.caffemodel")
    for name, value in slim.items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(slim, tmp_path, protocol):
    released.save_pickle(tmp_path / "a.pkl", released.airsplay(slim), protocol=protocol, author=None)
    loaded = load_checkpoint(tmp_path / "a.pkl")
    assert all(torch.equal(loaded[name], value) for name, value in slim.items())


def test_airsplay_without_attributes(slim, tmp_path):
    released.save_pickle(tmp_path / "faster_rcnn_from_caffe.pkl", released.airsplay(without_attributes(slim)))
    convention = ["MODEL.BUA.BOX_CONVENTION", "detectron2"]
    detector = slim_detector(*convention, "MODEL.BUA.ATTRIBUTES.ENABLED", "False")
    assert not any(load_weights(detector, tmp_path / "faster_rcnn_from_caffe.pkl")[::2])
    with pytest.raises(
        InputError, match=r"the checkpoint has no attributes: set MODEL\.BUA\.ATTRIBUTES\.ENABLED False"
    ):
        load_weights(slim_detector(*convention), tmp_path / "faster_rcnn_from_caffe.pkl")


def test_grid_feats_in_a_head_without_no_attribute(slim, tmp_path):
    torch.save({"model": released.grid_feats(slim)}, tmp_path / "bua-d2-frcn-r50.pth")
    convention = ["MODEL.BUA.BOX_CONVENTION", "detectron2"]
    load_weights(
        slim_detector(*convention, "MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS", "False"), tmp_path / "bua-d2-frcn-r50.pth"
    )
    with pytest.raises(InputError, match=r"to 5 with MODEL\.BUA\.ATTRIBUTES\.NO_ATTRIBUTE_CLASS False"):
        load_weights(slim_detector(*convention), tmp_path / "bua-d2-frcn-r50.pth")


def test_the_anchors_of_detectron2_are_added_if_a_file_has_none(slim):
    file = released.grid_feats(slim)
    for name in list(file):
        if name.startswith(released.RPN) and "conv" not in name:
            file[name] = torch.cat([file[name], file[name][: len(file[name]) // 4]])
    expected = cell_anchors(DETECTRON2_SIZES, released.RATIOS, "detectron2")
    torch.testing.assert_close(to_bua(file)[ANCHORS], expected)


def test_weights_of_the_other_box_convention_are_refused(slim, tmp_path):
    path = tmp_path / "a.caffemodel"
    released.save_caffemodel(path, released.caffe(slim, 50))
    assert not any(load_weights(slim_detector(), path))
    other = slim_detector("MODEL.BUA.BOX_CONVENTION", "detectron2")
    with pytest.raises(
        InputError, match=r"a\.caffemodel: was trained with other anchors \(box convention 'caffe'\)"
    ) as error:
        load_weights(other, path)
    assert "MODEL.BUA.BOX_CONVENTION" in str(error.value)
    start = other.proposal_generator.rpn_head.anchor_deltas.weight.clone()
    report = load_weights(other, path, allow_missing=True)
    assert report.reshaped == [
        f"{released.RPN}{layer}.{part}"
        for layer in ("objectness_logits", "anchor_deltas")
        for part in ("weight", "bias")
    ]
    assert torch.equal(other.proposal_generator.rpn_head.anchor_deltas.weight, start)


def test_the_parts_of_grid_models_keep_their_names(slim):
    parts = {
        "backbone.res5.0.conv2_offset.weight": torch.zeros(18, 4, 3, 3),
        "roi_heads.box_head.fc1.weight": slim[f"{released.HEAD}cls_score.weight"],
    }
    converted = to_bua(released.grid_feats(slim) | parts)
    assert parts.keys() <= converted.keys()
    assert "roi_heads.attribute_predictor.cls_embedding.weight" in converted


@pytest.mark.parametrize(
    ("layout", "missing"),
    [("caffe", "scale4c_branch2a.1"), ("caffe", "bn_conv1.2"), ("milvlg-caffe", f"{released.HEAD}cls_score.bias")],
)
def test_a_missing_part_is_named(slim, tmp_path, layout, missing):
    write, suffix, _, _ = LAYOUTS[layout]
    weights = write(slim, 50)
    del weights[missing]
    save(tmp_path / f"a.{suffix}", weights)
    with pytest.raises(InputError, match=f"a.{suffix}: .*{missing}' is missing"):
        load_checkpoint(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{released.RPN}objectness_logits.bias", ()),
        (f"{released.RPN}objectness_logits.bias", (1,)),
        (f"{released.HEAD}bbox_pred.bias", ()),
        (f"{released.HEAD}bbox_pred.bias", (9,)),
    ],
)
def test_an_impossible_shape_is_refused(slim, name, shape):
    with pytest.raises(LayoutError, match="the weights are damaged"):
        to_bua(released.milvlg(slim) | {name: torch.zeros(shape)})
