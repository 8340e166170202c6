"""The part of extraction.py that measures an extraction from files to files."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from measuring import count_operations, device_name, peak, timed, wait_for

from bua.checkpoint import save_checkpoint
from bua.extraction import batch_regions, extract, list_images
from bua.features import open_writer
from bua.io.images import read_image
from bua.modeling.detector import Detector
from bua.modeling.optimize import optimize_for_inference
from bua.structures import DetectorInput

# A trained detector finds about 32 confident regions of 300 in an image of COCO (docs/scale.md), before suppression a
# few times as many.
CONFIDENT_SHARE = 0.4
CONFIDENCE = 0.2
FORMATS = ("flat-fp16", "tsv")


@torch.inference_mode()
def make_scores_realistic(detector: Detector, images: list[DetectorInput]) -> None:
    """Scales the classifier of a detector of random weights, in place, so that its class probabilities are as peaked as
    those of a trained one.

    Random weights give nearly the same probabilities to all classes and in all regions. The classifier becomes
    ``factor * W (x - mean)`` with the mean of the regions' features x in ``images``, so that regions differ, and with
    the factor at which the best class of ``CONFIDENT_SHARE`` of the regions has a probability of ``CONFIDENCE``.
    """
    features = torch.cat([found.features for found in detector.eval().infer(images, regress=False)])
    layer = detector.roi_heads.box_predictor.cls_score
    mean = features.mean(dim=0)
    logits = (features - mean) @ layer.weight.T
    low, high = 1e-3, 1e9
    for _ in range(60):
        factor = (low * high) ** 0.5
        best = (factor * logits).softmax(dim=1)[:, :-1].amax(dim=1)
        low, high = (low, factor) if (best >= CONFIDENCE).float().mean() >= CONFIDENT_SHARE else (factor, high)
    layer.weight.mul_(factor)
    layer.bias.copy_(-(layer.weight @ mean))


def measure_files(args, plain: Detector, config: Path, overrides: list[str], folder: Path) -> None:
    """Extracts the images of a folder into files of each format, then measures the parts of the work."""
    images = list_images(folder)
    detector = optimize_for_inference(plain, precision=args.precision, compile=args.compile)
    batch_size = args.batch_size or (8 if args.device.startswith("cuda") else 1)
    batch = [detector.prepare(read_image(image.path)) for image in images[:batch_size]]
    operations = count_operations(lambda: detector.infer(batch, regress=False)) / len(batch)
    spent, number = measure_parts(args, detector, images, batch_size)
    print(f"\n{folder}: {len(images)} images, {args.scores} scores, {args.precision}, batch size {batch_size}")
    print(f"{'format':<12}{'images/s':>10}{'TFLOP/s':>10}{'of the data sheet':>19}{'the device computes':>21}")
    for format in FORMATS:
        rate = extract_once(args, plain, config, overrides, folder, format, batch_size)
        stated = peak(args.device, args.precision)
        share = f"{100 * rate * operations / stated:.0f} %" if stated else "-"
        busy = f"{100 * rate * spent['model'] / number:.0f} % of the time"
        print(f"{format:<12}{rate:>10.1f}{rate * operations / 1e12:>10.1f}{share:>19}{busy:>21}")
    print_parts(spent, number, args.num_workers)


def extract_once(args, plain, config, overrides, folder: Path, format: str, batch_size: int) -> float:
    """Returns the images per second, from files to a file. What starts the process up is not measured."""
    with tempfile.TemporaryDirectory() as output:
        weights = Path(output, "weights.pth")
        save_checkpoint(weights, model=plain.state_dict())
        summary = extract(
            folder,
            Path(output, "features"),
            config_file=config,
            overrides=overrides,
            weights=str(weights),
            format=format,
            precision=args.precision,
            compile=args.compile,
            batch_size=batch_size,
            num_workers=args.num_workers,
            device=args.device,
        )
    return summary.images_per_second


def measure_parts(args, detector, images: list, batch_size: int) -> tuple[dict[str, float], int]:
    """Returns the seconds of each part, one after the other, and of how many images they are."""
    spent: dict[str, float] = {}
    device = args.device
    rpn, heads = detector.proposal_generator, detector.roi_heads
    detector.backbone.forward = timed(detector.backbone.forward, "backbone", spent, device)
    rpn.forward = timed(rpn.forward, "RPN", spent, device)
    rpn.propose_groups = timed(rpn.propose_groups, "proposals", spent, device)
    heads.features_of_maps = timed(heads.features_of_maps, "pooling and res5", spent, device)
    infer = timed(detector.infer, "model", spent, device)
    read = timed(read_image, "decode", spent, "cpu")
    resize = timed(detector.prepare, "resize", spent, "cpu")
    to_host = timed(batch_regions.to_host, "copy to the host", spent, device)
    choose = timed(batch_regions.choose_rows, "select regions", spent, "cpu")
    images = images[: 25 * batch_size]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        writers = {format: files.enter_context(open_writer(Path(folder, format), format)) for format in FORMATS}
        for start in range(0, len(images), batch_size):
            if start == batch_size:
                wait_for(device)
                spent.clear()  # what the first batch took to set up
            batch = [resize(read(image.path)) for image in images[start : start + batch_size]]
            for image, found in zip(images[start:], infer(batch, regress=False)):
                boxes, probs, features = to_host([found.proposals, found.class_probs, found.features])
                rows = choose(boxes, probs, min_boxes=10, max_boxes=100, convention=detector.convention)
                found.proposals, found.class_probs = torch.from_numpy(boxes[rows]), torch.from_numpy(probs[rows])
                found.features, found.attribute_probs = torch.from_numpy(features[rows]), None
                regions = batch_regions.regions_of_given(found, image.image_id)
                for format, writer in writers.items():
                    timed(writer.append, f"write {format}", spent, "cpu")(regions)
    return spent, max(len(images) - batch_size, 1)


def print_parts(spent: dict[str, float], number: int, num_workers: int) -> None:
    """Prints the time per image of each part, and at what rate each thread or device that works on its own would let
    images through: the lowest of them is what the others wait for."""
    network = ("backbone", "RPN", "proposals", "pooling and res5")
    rest = spent["model"] - sum(spent.get(part, 0.0) for part in network)
    rows = [*((part, spent.get(part, 0.0)) for part in network), ("upload, heads and the rest of the model", rest)]
    rows += [(part, seconds) for part, seconds in spent.items() if part not in (*network, "model")]
    print(f"\n{'one after the other':44}{'ms per image':>14}")
    for part, seconds in sorted(rows, key=lambda row: -row[1]):
        print(f"{part:44}{1e3 * seconds / number:14.2f}")
    stages = {
        "the model": spent["model"],
        f"decode and resize in {num_workers} threads": (spent["decode"] + spent["resize"]) / max(num_workers, 1),
        "selection in one thread": spent["select regions"],
        **{f"writing {format} in one thread": spent[f"write {format}"] for format in FORMATS},
    }
    print(f"\n{'alone, a stage would let through':44}{'images/s':>14}")
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"{stage:44}{number / max(seconds, 1e-9):14.1f}")
    print(f"The others wait for the first of them, on {device_name('cpu')}.")
