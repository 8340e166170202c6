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

With --images FOLDER it also extracts a folder of JPEGs into a file and prints where the time is spent. On a GPU:

    python benchmarks/extraction.py --device cuda --images FOLDER --batch-size 8
"""

import argparse
import sys
import tempfile
import time
import types
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

import bua  # noqa: F401  before torch: it sets how OpenMP waits

# isort: split
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bua.config import load_cfg
from bua.extraction import extract, list_images, regions_from
from bua.features import open_writer
from bua.io.images import read_image
from bua.modeling import build_detector
from bua.modeling.optimize import optimize_for_inference
from bua.weights.export import AnchorGeometry, to_huggingface

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "vg_r101_frcnn.yaml"
OVERRIDES = ["MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TEST", "300", "MODEL.BUA.RESIZE", "caffe"]
NETWORK_SIZE = (600, 626)
REGIONS = 300
COMPILED = ", compiled"
PRODUCT = 4096  # rows and columns of the matrices whose product gives the rate
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=Path, help="folder of the port's modeling_frcnn.py")
    parser.add_argument("--device", default="cpu", help="%(default)s or cuda")
    parser.add_argument(
        "--repeat", type=int, default=5, help="number of runs of each, of which the fastest is printed (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    parser.add_argument("--image", type=Path, help="a JPEG instead of a drawn one")
    parser.add_argument("--images", type=Path, help="also extract this folder of JPEGs into a file")
    parser.add_argument("--batch-size", type=int, default=1, help="batch size for --images (%(default)s)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {_device_name(args.device)}")
    torch.manual_seed(0)
    cfg = load_cfg(CONFIG, [*OVERRIDES, "MODEL.DEVICE", args.device])
    plain = build_detector(cfg).eval()
    jpeg = args.image.read_bytes() if args.image else draw_jpeg()
    detectors = {"bua, fp32, as trained": plain}
    for precision in DTYPES:
        for compile in (False, True)[: 1 + args.compile]:
            name = f"bua, {precision}, optimised{COMPILED * compile}"
            detectors[name] = optimize_for_inference(plain, precision=precision, compile=compile)
    with torch.inference_mode():
        compare_models(args, plain, detectors, jpeg)
        compare_rest(args, detectors, jpeg)
        if args.images:
            extract_folder(args, optimize_for_inference(plain, precision="bf16", compile=args.compile))


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
    products = {precision: matrix_products(dtype, args.device) for precision, dtype in DTYPES.items()}
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
    # Random weights find all classes alike, which trained ones do not, and which takes selection longest.
    predictions.class_probs = (20 * predictions.class_probs.log()).softmax(dim=1)
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


def extract_folder(args, detector) -> None:
    """Extracts a folder into a file, then measures the parts one after the other, waiting for the device after each."""
    with tempfile.TemporaryDirectory() as folder:
        summary = extract(
            args.images,
            Path(folder, "features"),
            config_file=CONFIG,
            overrides=OVERRIDES,
            weights="random",
            format="flat-fp16",
            precision="bf16",
            compile=args.compile,
            batch_size=args.batch_size,
            device=args.device,
        )
    print(f"\n{args.images}: {summary.done} images, {summary.images_per_second:.1f} a second, bf16, to flat-fp16")

    spent = defaultdict(float)
    detector.backbone.forward = timed(detector.backbone.forward, "backbone", spent, args.device)
    rpn = detector.proposal_generator
    rpn.forward = timed(rpn.forward, "RPN", spent, args.device)
    rpn.propose = timed(rpn.propose, "proposals", spent, args.device)
    heads = detector.roi_heads
    heads.features = timed(heads.features, "pooling and res5", spent, args.device)
    infer = timed(detector.infer, "model", spent, args.device)
    prepare = timed(lambda path: detector.prepare(read_image(path)), "decode and resize (in threads)", spent, "cpu")
    select = timed(regions_from, "select and copy to the host", spent, args.device)
    images = list_images(args.images)[: 50 * args.batch_size]
    for start in range(0, len(images), args.batch_size):
        if start == args.batch_size:
            spent.clear()  # what the first batch took to set up
        batch = [prepare(image.path) for image in images[start : start + args.batch_size]]
        for predictions in infer(batch, regress=False):
            select(predictions, 0, convention=detector.convention)
    number = max(len(images) - args.batch_size, 1)
    parts = sum(spent[part] for part in ("backbone", "RPN", "proposals", "pooling and res5"))
    spent["upload, heads and the rest of the model"] = spent.pop("model") - parts
    print(f"{'one after the other':44}{'ms per image':>14}")
    for part, time_taken in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{part:44}{1e3 * time_taken / number:14.2f}")


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


def take_turns(runs: dict, repeat: int, device: str) -> dict[str, float]:
    """Returns the seconds of the fastest run of each, after a run that is not measured."""
    seconds = dict.fromkeys(runs, float("inf"))
    for turn in range(repeat + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            _wait(device)
            if turn > 0:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def timed(function, part: str, spent: dict, device: str):
    def run(*arguments, **keywords):
        _wait(device)
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        _wait(device)
        spent[part] += time.perf_counter() - start
        return result

    return run


def count_operations(run) -> float:
    """Returns the operations of convolutions and matrix products: two for each multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matrix_products(dtype: torch.dtype, device: str) -> dict:
    """Returns functions that compute the product of two large square matrices: with torch's matrix product and as a 1x1
    convolution, since some BLAS libraries are slow on the CPUs of other makers."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device).to(dtype) for _ in range(2))
    rows, weight = a.T[None, :, :, None], b[:, :, None, None]
    return {"product": lambda: a @ b, "convolution": lambda: nn.functional.conv2d(rows, weight)}


def draw_jpeg() -> bytes:
    """Returns a JPEG of NETWORK_SIZE with smooth colours, edges and noise."""
    random = np.random.default_rng(0)
    height, width = NETWORK_SIZE
    blots = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(blots, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(30):
        x, y, w, h = (int(value) for value in random.integers(0, [width, height, 200, 200]))
        cv2.rectangle(image, (x, y), (x + w, y + h), random.integers(0, 256, 3).tolist(), -1)
    image = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def decode(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _namespace(tree):
    if not isinstance(tree, dict):
        return tree
    return types.SimpleNamespace(**{key: _namespace(value) for key, value in tree.items()})


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    capabilities = torch.cpu.get_capabilities()
    return f"{capabilities.get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
