#!/usr/bin/env python3
"""Measures how fast features are extracted from images, compared with the public pure-PyTorch port of this detector.

The port is Hugging Face's, from the research projects that were part of transformers. It is not part of bua; get it
with:

    git clone --depth 1 https://github.com/huggingface/transformers-research-projects
    python benchmarks/extraction.py --port transformers-research-projects/lxmert

Both run ResNet-101 with the same random weights on the same image and 300 proposals, in turns; the figures are those of
the fastest run of each. First, their outputs are compared. The floor is the time that the operations of the network as
published would take at the rate of a large matrix product in that precision. bua computes fewer operations, so it can
be faster than the floor; the share of the rate that it reaches with its own operations is printed too.

Then it extracts a folder of JPEGs into files, and prints the images per second, the share of the device's rate, the
time of each part, and which part the others wait for; --images names the folder, or says how many images of COCO's
sizes are drawn. With --scores realistic, the random classifier is scaled so that class probabilities are as peaked as
those of a trained detector; with --scores random they are nearly equal, which selection takes longest for. On a GPU:

    python benchmarks/extraction.py --device cuda --images 2000 --num-workers 8
"""

import argparse
import sys
import tempfile
import types
from pathlib import Path

import bua  # noqa: F401  before torch: it sets how OpenMP waits

# isort: split
import torch
from extraction_of_files import make_scores_realistic, measure_files
from measuring import (
    COCO_SIZES,
    DTYPES,
    PRODUCT,
    check,
    count_operations,
    decode,
    device_name,
    draw_folder,
    draw_jpeg,
    matrix_products,
    take_turns,
)
from torch import nn

from bua.config import load_cfg
from bua.errors import command
from bua.extraction import regions_from
from bua.features import open_writer
from bua.modeling import build_detector
from bua.modeling.optimize import optimize_for_inference
from bua.weights.export import AnchorGeometry, to_huggingface

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "vg_r101_frcnn.yaml"
OVERRIDES = ["MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TEST", "300", "MODEL.BUA.RESIZE", "caffe"]
NETWORK_SIZE = (600, 626)
REGIONS = 300
COMPILED = ", compiled"


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    check(args.device)
    print(f"torch {torch.__version__}, {device_name(args.device)}")
    torch.manual_seed(0)
    overrides = [*OVERRIDES, *args.overrides]
    plain = build_detector(load_cfg(CONFIG, [*overrides, "MODEL.DEVICE", args.device])).eval()
    jpeg = args.image.read_bytes() if args.image else draw_jpeg(NETWORK_SIZE)
    if args.scores == "realistic":
        make_scores_realistic(plain, [plain.prepare(decode(draw_jpeg(COCO_SIZES[i], i))) for i in range(4)])
    with torch.inference_mode():
        if not args.only_files:
            detectors = {"bua, fp32, as trained": plain}
            for precision in ("fp32", "bf16"):
                for compile in (False, True)[: 1 + args.compile]:
                    name = f"bua, {precision}, optimised{COMPILED * compile}"
                    detectors[name] = optimize_for_inference(plain, precision=precision, compile=compile)
            compare_models(args, plain, detectors, jpeg)
            compare_rest(args, detectors, jpeg)
    if args.images:
        with tempfile.TemporaryDirectory() as folder:
            drawn = args.images.isdigit()
            images = draw_folder(Path(folder), int(args.images)) if drawn else Path(args.images)
            measure_files(args, plain, CONFIG, overrides, images)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=Path, help="folder of the port's modeling_frcnn.py")
    parser.add_argument("--device", default="cpu", help="%(default)s or cuda")
    parser.add_argument(
        "--repeat", type=int, default=5, help="number of runs of each, of which the fastest is printed (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    parser.add_argument("--image", type=Path, help="a JPEG instead of a drawn one")
    parser.add_argument("--images", help="folder of JPEGs, or number of JPEGs to draw, to extract into files")
    parser.add_argument("--only-files", action="store_true", help="only extract the images of --images")
    parser.add_argument("--scores", choices=("random", "realistic"), default="realistic", help="%(default)s")
    parser.add_argument("--precision", choices=DTYPES, default="bf16", help="precision for --images (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, help="batch size for --images; by default 8 on a GPU and 1 on the CPU"
    )
    parser.add_argument(
        "--num-workers", type=int, default=2, help="threads that decode and resize, for --images (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the configuration and their values")
    return parser.parse_intermixed_args(argv)


def compare_models(args, plain, detectors: dict, jpeg: bytes) -> None:
    """Prints the seconds per image, from the resized image to its regions on the device."""
    inputs = plain.prepare(decode(jpeg))
    height, width = inputs.image.shape[-2:]
    runs = {}
    if args.port:
        port = load_port(args.port, plain, args.device)
        pixels = plain._stack([inputs])
        shapes, scales = torch.tensor([[height, width]]), torch.ones(1, 2)
        runs["port, fp32"] = lambda: port(
            pixels, shapes, scales_yx=scales, max_detections=REGIONS, padding="max_detections", return_tensors="pt"
        )
        print_agreement(port, pixels, plain, detectors, inputs)
    for name, detector in detectors.items():
        runs[name] = lambda detector=detector: detector.infer([inputs], regress=False)
    products = {precision: matrix_products(DTYPES[precision], args.device) for precision in ("fp32", "bf16")}
    turns = runs | {(precision, kind): run for precision in products for kind, run in products[precision].items()}
    seconds = take_turns(turns, args.repeat, args.device)
    rates = {p: 2 * PRODUCT**3 / min(seconds.pop((p, kind)) for kind in products[p]) for p in products}

    # Compiling changes no number of operations, and the counter does not see into what is compiled.
    operations = {
        name: count_operations(lambda name=name: detectors[name.removesuffix(COMPILED)].infer([inputs]))
        for name in detectors
    }
    published = operations["bua, fp32, as trained"]
    rates_text = ", ".join(f"{precision} {rate / 1e9:,.0f}" for precision, rate in rates.items())
    print(f"\nimage of {width}x{height}, {REGIONS} proposals: {published / 1e12:.2f} TFLOP as published")
    print(f"GFLOP/s of a large matrix product: {rates_text}")
    baseline = next(iter(seconds))
    print(f"{'':32}{'s per image':>12}{'times ' + baseline:>28}{'TFLOP done':>12}{'of floor':>10}{'of rate':>9}")
    for name, time_taken in seconds.items():
        done = operations.get(name, published)
        rate = rates["bf16" if "bf16" in name else "fp32"]
        ratio = seconds[baseline] / time_taken
        floor, reached = (100 * count / rate / time_taken for count in (published, done))
        print(f"{name:32}{time_taken:12.3f}{ratio:28.2f}{done / 1e12:12.2f}{floor:9.0f}%{reached:8.0f}%")


def compare_rest(args, detectors: dict, jpeg: bytes) -> None:
    """Prints the time per image outside the model, and its share of the time of the fastest model."""
    name = [name for name in detectors if "compiled" not in name][-1]
    detector = detectors[name]
    image = decode(jpeg)
    inputs = detector.prepare(image)
    (predictions,) = detector.infer([inputs], regress=False)
    select = lambda: regions_from(  # noqa: E731
        predictions, 0, min_boxes=100, max_boxes=100, convention=detector.convention
    )
    regions = select()
    with tempfile.TemporaryDirectory() as folder, open_writer(Path(folder, "features.tsv"), "tsv") as writer:
        ids = iter(range(1_000_000))

        def write():
            regions.image_id = next(ids)
            writer.append(regions)

        runs = {
            "decode": lambda: decode(jpeg),
            "resize": lambda: detector.prepare(image),
            "select 100 regions": select,
            "write them (tsv)": write,
            name: lambda: detector.infer([inputs], regress=False),
        }
        seconds = take_turns(runs, max(args.repeat, 3), args.device)
    model = seconds.pop(name)
    print(f"\n{'outside the model':32}{'ms':>12}{'of ' + name:>30}")
    for part, time_taken in [*seconds.items(), ("together", sum(seconds.values()))]:
        print(f"{part:32}{1e3 * time_taken:12.1f}{100 * time_taken / model:29.1f}%")


def load_port(folder: Path, detector, device: str):
    """Returns the port with the detector's weights. Its ``utils``, needed only to load files, is replaced."""
    stub = types.ModuleType("utils")
    for name in ("WEIGHTS_NAME", "Config", "cached_path", "hf_bucket_url", "is_remote_url", "load_checkpoint"):
        setattr(stub, name, None)
    sys.modules["utils"] = stub
    sys.path.insert(0, str(folder))
    from modeling_frcnn import GeneralizedRCNN

    port = GeneralizedRCNN(_namespace(port_config(device))).eval()
    geometry = AnchorGeometry((64, 128, 256, 512), (0.5, 1.0, 2.0), "detectron2")
    lacking = port.load_state_dict(to_huggingface(detector.state_dict(), geometry))
    assert not any(lacking), lacking
    return port


def port_config(device: str) -> dict:
    """Returns the settings of the port's released config.yaml, with 300 proposals, none of which is dropped."""
    resnets = {
        **{"NORM": "BN", "STEM_OUT_CHANNELS": 64, "OUT_FEATURES": ["res4"], "DEPTH": 101, "NUM_GROUPS": 1},
        **{"WIDTH_PER_GROUP": 64, "RES2_OUT_CHANNELS": 256, "STRIDE_IN_1X1": True, "RES5_DILATION": 1},
    }
    rpn = {
        **{"IN_FEATURES": ["res4"], "NMS_THRESH": 0.7, "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5},
        **{"SMOOTH_L1_BETA": 0.0, "LOSS_WEIGHT": 1.0, "BOUNDARY_THRESH": -1, "BBOX_REG_WEIGHTS": (1.0,) * 4},
        **{"PRE_NMS_TOPK_TRAIN": 12000, "PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TRAIN": 2000},
        **{"POST_NMS_TOPK_TEST": REGIONS, "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1]},
    }
    heads = {
        **{"BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25, "IN_FEATURES": ["res4"], "NUM_CLASSES": 1600},
        **{"PROPOSAL_APPEND_GT": True, "SCORE_THRESH_TEST": 0.2, "NMS_THRESH_TEST": [0.3]},
    }
    box_head = {
        **{"CLS_AGNOSTIC_BBOX_REG": False, "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "RES5HALVE": False},
        **{"ATTR": True, "NUM_ATTRS": 400, "SMOOTH_L1_BETA": 0.0, "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0)},
    }
    return {
        "MODEL": {"PIXEL_MEAN": [102.9801, 115.9465, 122.7717], "DEVICE": device, "MAX_POOL": True},
        "RESNETS": resnets,
        "BACKBONE": {"FREEZE_AT": 2},
        "ANCHOR_GENERATOR": {"SIZES": [[64, 128, 256, 512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "OFFSET": 0.0},
        "PROPOSAL_GENERATOR": {"HIDDEN_CHANNELS": 512, "MIN_SIZE": 0},
        "RPN": rpn,
        "ROI_HEADS": heads,
        "ROI_BOX_HEAD": box_head,
        "MIN_DETECTIONS": 0,
        "MAX_DETECTIONS": REGIONS,
    }


def print_agreement(port, pixels, plain, detectors: dict, inputs) -> None:
    """Prints how much bua's proposals, and its features of the port's proposals, differ from the port's."""
    feature_maps = port.backbone(pixels)
    shapes = torch.tensor([inputs.image.shape[-2:]])
    (boxes,), _ = port.proposal_generator(pixels, shapes, feature_maps, None)
    logits, attribute_logits, _, features = port.roi_heads(feature_maps, [boxes], None)
    probs, attribute_probs = logits.softmax(1)[:, :-1], attribute_logits.softmax(1)[:, :-1]
    scale = boxes.new_tensor([*inputs.scale, *inputs.scale])
    print("\nbeside the port's: share of its proposals found to 0.1 pixel; features, largest difference over largest")
    print("value, and least cosine; class and attribute probabilities, likewise. Random weights nearly tie anchors.")
    print(f"{'':32}{'proposals':>10}{'features':>10}{'cosine':>10}{'classes':>9}{'attributes':>12}")
    for name, detector in detectors.items():
        (own,) = detector.infer([inputs], regress=False)
        distance = torch.cdist(boxes, own.proposals * scale, p=torch.inf).amin(dim=1)
        found = (distance < 0.1).double().mean().item()
        (given,) = detector.infer([inputs], [boxes / scale], regress=False)
        difference = _relative(given.features, features)
        cosine = nn.functional.cosine_similarity(given.features, features).min().item()
        classes = _relative(given.class_probs, probs)
        attributes = _relative(given.attribute_probs, attribute_probs)
        print(f"{name:32}{100 * found:9.1f}%{difference:10.1e}{cosine:10.6f}{classes:9.0e}{attributes:12.0e}")


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _namespace(tree):
    if not isinstance(tree, dict):
        return tree
    return types.SimpleNamespace(**{key: _namespace(value) for key, value in tree.items()})


if __name__ == "__main__":
    sys.exit(main())
