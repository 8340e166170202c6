"""Writes the weights of a detector in the layouts of other programs: the inverse of loading.

Each function takes weights under bua's names and returns those of a file; ``save_*`` write the file. The functions also
work on tensors without values ("meta"), with which the names and shapes of a real network are computed quickly.
"""

import pickle

import numpy as np
import torch

from bua.modeling.anchors import cell_anchors
from bua.weights.caffemodel import net_parameter

HEAD, ATTRIBUTES, RPN = "roi_heads.box_predictor.", "roi_heads.attribute_predictor.", "proposal_generator.rpn_head."
D2_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
SIZES, RATIOS = (64, 128, 256, 512), (0.5, 1.0, 2.0)
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def convolutions(depth: int) -> dict[str, str]:
    """Returns Caffe's name of each convolution of a ResNet (MSRA's release: a, b, c or a, b1, ...) by bua's name."""
    names = {"backbone.stem.conv1": "conv1"}
    for stage, blocks in zip((2, 3, 4, 5), DEPTHS[depth]):
        parent = "roi_heads.res5" if stage == 5 else f"backbone.res{stage}"
        for block in range(blocks):
            many = blocks > 6 or (depth == 101 and stage == 3)
            label = "a" if block == 0 else f"b{block}" if many else "abcdef"[block]
            parts = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
            for part, branch in ({"shortcut": "branch1"} | parts if block == 0 else parts).items():
                names[f"{parent}.{block}.{part}"] = f"res{stage}{label}_{branch}"
    return names


def caffe(weights: dict, depth: int) -> dict[str, torch.Tensor]:
    """Returns blobs ``<layer>.<number>``: background and "no attribute" first, two objectness logits, raw deltas."""
    blobs = {}
    for target, layer in convolutions(depth).items():
        suffix = "_conv1" if layer == "conv1" else layer.removeprefix("res")
        factor = 999.98  # Caffe's moving averages are sums
        blobs[f"{layer}.0"] = weights[f"{target}.weight"]
        blobs[f"bn{suffix}.0"] = weights[f"{target}.norm.running_mean"] * factor
        blobs[f"bn{suffix}.1"] = weights[f"{target}.norm.running_var"] * factor
        blobs[f"bn{suffix}.2"] = torch.full((1,), factor, device=blobs[f"{layer}.0"].device)
        blobs[f"scale{suffix}.0"] = weights[f"{target}.norm.weight"]
        blobs[f"scale{suffix}.1"] = weights[f"{target}.norm.bias"]
    layers = {f"{RPN}conv": "rpn_conv/3x3", f"{RPN}objectness_logits": "rpn_cls_score"}
    layers |= {f"{RPN}anchor_deltas": "rpn_bbox_pred", f"{HEAD}cls_score": "cls_score", f"{HEAD}bbox_pred": "bbox_pred"}
    layers |= {ATTRIBUTES + name: name for name in ("cls_embedding", "fc_attr", "attr_score")}
    heads = caffe_heads(weights)
    for target, layer in layers.items():
        for number, part in enumerate(("weight", "bias")):
            if f"{target}.{part}" in heads:
                blobs[f"{layer}.{number}"] = heads[f"{target}.{part}"]
    return blobs


def caffe_imagenet(weights: dict, depth: int) -> dict[str, torch.Tensor]:
    backbone = ("conv1.", "bn", "scale", "res")
    return {name: value for name, value in caffe(weights, depth).items() if name.startswith(backbone)}


def caffe_heads(weights: dict) -> dict[str, torch.Tensor]:
    """Returns the heads under bua's names with Caffe's orders and scales."""
    heads = {name: value for name, value in weights.items() if name.startswith((HEAD, ATTRIBUTES, RPN))}
    for part in ("weight", "bias"):
        difference = heads[f"{RPN}objectness_logits.{part}"]
        background = torch.full_like(difference, 0.25)
        heads[f"{RPN}objectness_logits.{part}"] = torch.cat([background, background + difference])
        scores = heads[f"{HEAD}cls_score.{part}"]
        heads[f"{HEAD}cls_score.{part}"] = torch.cat([scores[-1:], scores[:-1]])
        deltas = heads[f"{HEAD}bbox_pred.{part}"]
        stds = torch.tensor([0.1, 0.1, 0.2, 0.2], device=deltas.device).repeat(len(deltas) // 4)
        raw = deltas * (stds[:, None] if part == "weight" else stds)
        heads[f"{HEAD}bbox_pred.{part}"] = torch.cat([torch.full_like(raw[:4], 7.0), raw])
    for name in ("cls_embedding.weight", "attr_score.weight", "attr_score.bias"):
        rows = heads[ATTRIBUTES + name]
        heads[ATTRIBUTES + name] = torch.cat([rows[-1:], rows[:-1]])
    return heads


def milvlg(weights: dict) -> dict[str, torch.Tensor]:
    renamed = {**weights, **caffe_heads(weights)}
    for own, released in {
        "cls_embedding": "cls_embed",
        "fc_attr": "attr_linear1",
        "attr_score": "attr_linear2",
    }.items():
        for part in ("weight", "bias"):
            if f"{ATTRIBUTES}{own}.{part}" in renamed:
                renamed[f"{HEAD}{released}.{part}"] = renamed.pop(f"{ATTRIBUTES}{own}.{part}")
    return with_counters(renamed) | {D2_ANCHORS: cell_anchors(SIZES, RATIOS, "caffe")}


def milvlg_version_2(weights: dict) -> dict[str, torch.Tensor]:
    """For MILVLG's ResNet-152, whose detector applies the first normalisation of res5 to the whole feature map."""
    places = {"backbone.norm.": "roi_heads.res5.0.norm.", "roi_heads.res5.norm.": "roi_heads.res5_bn."}
    renamed = {}
    for name, value in milvlg(weights).items():
        for own, released in places.items():
            name = name.replace(own, released) if name.startswith(own) else name
        renamed[name] = value
    return renamed


def airsplay(weights: dict) -> dict[str, torch.Tensor]:
    """Returns the weights as airsplay and Hugging Face release them."""
    renamed = {name.replace(ATTRIBUTES, HEAD): value for name, value in weights.items()}
    return with_counters(renamed) | {D2_ANCHORS: cell_anchors(SIZES, RATIOS, "detectron2")}


def grid_feats(weights: dict) -> dict[str, torch.Tensor]:
    """Returns the weights of grid-feats-vqa, which has no "no attribute" class."""
    renamed = {}
    for name, value in weights.items():
        value = value[:-1] if name.startswith(f"{ATTRIBUTES}attr_score") else value
        renamed[name.replace("cls_embedding", "obj_embed").replace("fc_attr", "fc.0")] = value
    return renamed


def caffe2(weights: dict, depth: int) -> dict[str, torch.Tensor]:
    """Returns Detectron2's ImageNet backbones, with the unused classifier and bias."""
    renamed = {}
    for target, layer in convolutions(depth).items():
        block, part = target.split(".")[-2:]
        branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[part]
        name = layer if layer == "conv1" else f"{layer[:4]}_{block}_{branch}"
        norm = f"{'res_' if name == 'conv1' else ''}{name}_bn"
        renamed[f"{name}_w"] = weights[f"{target}.weight"]
        renamed[f"{norm}_gamma"] = weights[f"{target}.norm.weight"]
        renamed[f"{norm}_beta"] = weights[f"{target}.norm.bias"]
        renamed[f"{norm}_running_mean"] = weights[f"{target}.norm.running_mean"]
        renamed[f"{norm}_running_var"] = weights[f"{target}.norm.running_var"]
    device = renamed["conv1_w"].device
    extra = {"conv1_b": (renamed["conv1_w"].shape[0],), "fc1000_w": (1000, 8), "fc1000_b": (1000,)}
    return renamed | {name: torch.zeros(shape, device=device) for name, shape in extra.items()}


def torchvision(weights: dict, depth: int) -> dict[str, torch.Tensor]:
    """Returns torchvision's ResNet, whose input is RGB."""
    renamed = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    for target in convolutions(depth):
        for part in ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
            block = ".".join(target.split(".")[-3:])
            for stage in (2, 3, 4, 5):
                block = block.replace(f"res{stage}.", f"layer{stage - 1}.").replace("backbone.stem.", "")
            if "shortcut" in block:
                name = block.replace("shortcut", "downsample.1" if "norm" in part else "downsample.0")
            else:
                name = block.replace("conv", "bn") if "norm" in part else block
            renamed[f"{name}.{part.removeprefix('norm.')}"] = weights[f"{target}.{part}"]
    renamed["conv1.weight"] = renamed["conv1.weight"].flip(1)
    return with_counters(renamed)


def with_counters(weights: dict) -> dict[str, torch.Tensor]:
    """Adds the counters of batches that trainable normalisation has."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in weights
        if name.endswith("running_var")
    }
    return weights | counters


def vinvl(weights: dict) -> dict[str, torch.Tensor]:
    """Returns the weights of VinVL's detector: background and "no attribute" first, and res5 twice."""
    places = {
        "backbone.res": "backbone.body.layer",
        "backbone.stem.": "backbone.body.stem.",
        "roi_heads.res": "roi_heads.box.feature_extractor.head.layer",
        f"{RPN}objectness_logits.": "rpn.head.cls_logits.",
        f"{RPN}anchor_deltas.": "rpn.head.bbox_pred.",
        f"{RPN}conv.": "rpn.head.conv.",
        HEAD: "roi_heads.box.predictor.",
        ATTRIBUTES: "attribute.predictor.",
    }
    renamed = {"rpn.anchor_generator.cell_anchors.0": cell_anchors(SIZES, RATIOS, "caffe")}
    for name, value in weights.items():
        own = next(own for own in places if name.startswith(own))
        rest = name.removeprefix(own)
        if own.endswith("res"):
            rest = f"{int(rest[0]) - 1}{rest[1:]}".replace("shortcut.norm", "downsample.1")
            rest = rest.replace("shortcut", "downsample.0")
        for number in "123":
            rest = rest.replace(f"conv{number}.norm", f"bn{number}")
        if "bbox_pred" in rest:
            value = torch.cat([torch.full_like(value[:4], 7.0), value])
        elif "predictor" in own and "fc_attr" not in rest:
            value = torch.cat([value[-1:], value[:-1]])
        renamed[places[own] + rest] = value + 1e-5 if rest.endswith("running_var") else value
    box = "roi_heads.box.feature_extractor."
    copies = {name.replace(box, "attribute.feature_extractor."): renamed[name] for name in renamed if box in name}
    return {f"module.{name}": value for name, value in (renamed | copies).items()}


def backbone_of(weights: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(("backbone.", "roi_heads.res5."))}


def save_caffemodel(path, blobs: dict, *, shapes: str = "new", double: bool = False) -> None:
    """Writes a caffemodel with these blobs and a layer without blobs; ``shapes`` "old" writes four dimensions."""
    net = net_parameter()(name="ResNet-101")
    net.layer.add(name="data", type="Python")
    layers = {}
    for name, value in blobs.items():
        layer, _, _ = name.rpartition(".")
        if layer not in layers:
            layers[layer] = net.layer.add(name=layer, type="Any")
        blob = layers[layer].blobs.add()
        if double:
            blob.double_data.append(value.double().numpy().astype("<f8").tobytes())
        else:
            blob.data.append(value.numpy().astype("<f4").tobytes())
        if shapes == "new":
            blob.shape.dim.extend(value.shape)
        else:
            blob.num, blob.channels, blob.height, blob.width = [1] * (4 - value.dim()) + list(value.shape)
    path.write_bytes(net.SerializeToString())


def save_pickle(path, weights: dict, *, protocol: int = 2, author: str | None = "Detectron2 Model Zoo") -> None:
    """Writes a pickle of arrays as Detectron2 does, or, without an author, as Detectron does."""
    arrays = {name: value.numpy() for name, value in weights.items()}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    content = {"model": arrays, "__author__": author} if author else {"blobs": arrays}
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)
