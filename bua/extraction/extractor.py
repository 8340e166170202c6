"""Pictures in, a file of region features out, on one device."""

import hashlib
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bua.checkpoint import load_weights
from bua.config import load_cfg
from bua.data.images import read_image
from bua.errors import InputError
from bua.extraction.select import regions_from
from bua.extraction.sources import ImageFile, list_images
from bua.features import FORMATS, FeatureWriter, open_writer
from bua.files import whole_file
from bua.modeling import Detector, build_detector
from bua.structures import DetectorInput
from bua.weights.zoo import ZOO, fetch

RANDOM_WEIGHTS = "random"

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        done: pictures whose features this run wrote.
        skipped: pictures that were in the output before.
        failed: pictures listed in ``<output>.failures.jsonl``.
        seconds: from the first picture to the last.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0


def extract(
    images: str | Path,
    output: str | Path,
    *,
    config_file: str | Path,
    weights: str | Path | None = None,
    overrides: list[str] = (),
    format: str = "tsv",
    image_root: str | Path | None = None,
    min_boxes: int = 10,
    max_boxes: int = 100,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.3,
    batch_size: int = 1,
    num_workers: int | None = None,
    device: str | None = None,
    allow_missing: bool = False,
) -> Summary:
    """Writes the region features of pictures, and goes on where an earlier run with the same settings stopped.

    Beside the output lie ``<output>.meta.json`` (the settings, which a later run must share) and, where pictures
    failed, ``<output>.failures.jsonl`` (``image_id``, ``path``, ``reason``). Failed pictures do not stop the run, and
    the next run tries them again.

    Args:
        images, image_root: as for ``bua.extraction.sources.list_images``.
        output: a file, or a folder for the npz format.
        config_file, overrides: as for ``bua.config.load_cfg``.
        weights: a checkpoint, a released one's name (``bua.weights.zoo.ZOO``) or an address; by default the
            configuration's MODEL.WEIGHTS; "random" for random weights.
        format: one of ``bua.features.FORMATS``.
        min_boxes, max_boxes, score_threshold, nms_threshold: as for ``bua.extraction.select_regions``.
        batch_size: pictures a step.
        num_workers: processes that decode and resize; by default the configuration's, at most one a core.
        device: "cpu", "cuda", ...; by default the configuration's.
        allow_missing: whether parameters that the weights lack, or have in another shape, may keep random values.

    Raises:
        InputError: names what cannot be used, before anything is written.
    """
    output = Path(output)
    selection = {
        "min_boxes": min_boxes,
        "max_boxes": max_boxes,
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
    }
    _check_selection(**selection)
    cfg = load_cfg(config_file, overrides)
    if device:
        cfg.MODEL.DEVICE = device
    _check_format(format, cfg)
    weights = _find_weights(weights, cfg, config_file)
    pictures = list_images(images, image_root)
    settings = _settings(cfg, weights, format, selection)
    _check_settings(output, settings)

    detector = _load_detector(cfg, weights, allow_missing)
    writer = open_writer(output, format)
    _write_settings(output, settings)
    if num_workers is None:
        num_workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    try:
        return extract_with(
            detector,
            pictures,
            writer,
            failures=_beside(output, "failures.jsonl"),
            batch_size=batch_size,
            num_workers=num_workers,
            **selection,
        )
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written: {error.strerror}; make room, and the same command goes on"
        ) from error
    finally:
        writer.close()


def extract_with(
    detector: Detector,
    images: list[ImageFile],
    writer: FeatureWriter,
    *,
    failures: Path,
    batch_size: int = 1,
    num_workers: int = 0,
    **selection,
) -> Summary:
    """Writes the features of those ``images`` that ``writer`` does not have, with a detector at hand.

    Args:
        failures: the file that lists pictures which could not be read or written; replaced, and removed where there
            are none.
        selection: keyword arguments of ``bua.extraction.select_regions`` besides ``convention``.
    """
    missing = [image for image in images if image.image_id not in writer.done]
    summary = Summary(skipped=len(images) - len(missing))
    failures.unlink(missing_ok=True)
    loader = DataLoader(
        _Pictures(missing, detector.prepare),
        batch_size=batch_size,
        num_workers=min(num_workers, len(missing)),
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    start = time.perf_counter()
    try:
        with _progress(summary, len(images)) as progress:
            for batch in loader:
                good = [(image, picture) for image, picture in batch if isinstance(picture, DetectorInput)]
                reasons = [(image, picture) for image, picture in batch if not isinstance(picture, DetectorInput)]
                for (image, _), predictions in zip(good, detector.infer([picture for _, picture in good])):
                    regions = regions_from(predictions, image.image_id, convention=detector.convention, **selection)
                    try:
                        writer.append(regions)
                        summary.done += 1
                    except InputError as error:
                        reasons.append((image, str(error)))
                _list_failures(failures, reasons)
                summary.failed += len(reasons)
                progress.set_postfix(failed=summary.failed, refresh=False)
                progress.update(len(batch))
    except KeyboardInterrupt:
        logger.warning("stopped after %d pictures; the same command goes on from there", summary.done)
        raise
    summary.seconds = time.perf_counter() - start
    return summary


class _Pictures(Dataset):
    """Decoded and resized pictures; the reason, a string, for one that cannot be read."""

    def __init__(self, images: list[ImageFile], prepare):
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[ImageFile, DetectorInput | str]:
        image = self.images[index]
        try:
            return image, self.prepare(read_image(image.path), image.image_id)
        except (InputError, OSError, cv2.error) as error:
            return image, " ".join(str(error).split())


def _start_worker(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _progress(summary: Summary, total: int) -> tqdm:
    # In a log, a line now and then; on a terminal, a bar.
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(desc="extract", total=total, initial=summary.skipped, unit="img", mininterval=interval)


def _list_failures(path: Path, reasons: list[tuple[ImageFile, str]]) -> None:
    if not reasons:
        return
    with open(path, "a", encoding="utf-8") as file:
        for image, reason in reasons:
            file.write(json.dumps({"image_id": image.image_id, "path": image.path, "reason": reason}) + "\n")


def _load_detector(cfg, weights: str, allow_missing: bool) -> Detector:
    # Random weights are the same in each run, so that one can go on with another's output.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = build_detector(cfg)
    if weights == RANDOM_WEIGHTS:
        logger.warning("random weights, as asked for: the features mean nothing")
    else:
        for line in load_weights(detector, weights, allow_missing=allow_missing).lines():
            logger.warning("%s: %s", weights, line)
    return detector.eval()


def _find_weights(weights: str | Path | None, cfg, config_file: str | Path) -> str:
    """A file, fetched where it must be, or ``RANDOM_WEIGHTS``."""
    if weights == RANDOM_WEIGHTS:
        return RANDOM_WEIGHTS
    if not weights and not os.path.isfile(cfg.MODEL.WEIGHTS) and cfg.MODEL.WEIGHTS not in ZOO:
        raise InputError(
            f"weights: none given, and MODEL.WEIGHTS of {config_file} is {cfg.MODEL.WEIGHTS!r}, not a checkpoint here; "
            f"give a trained detector's checkpoint, or {RANDOM_WEIGHTS!r} to try things out"
        )
    return str(fetch(weights or cfg.MODEL.WEIGHTS))


def _check_selection(min_boxes: int, max_boxes: int, score_threshold: float, nms_threshold: float) -> None:
    if not 0 <= min_boxes <= max_boxes or max_boxes == 0:
        raise InputError(f"min boxes {min_boxes}, max boxes {max_boxes}: need 0 <= min <= max and max > 0")
    for name, value in {"score threshold": score_threshold, "NMS threshold": nms_threshold}.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} {value}: need a number from 0 to 1")


def _check_format(format: str, cfg) -> None:
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(FORMATS)}")
    if format == "lxmert-tsv" and not cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        raise InputError(
            "format lxmert-tsv: needs attributes, but MODEL.BUA.ATTRIBUTES.ENABLED is False; use tsv or npz"
        )


def _settings(cfg, weights: str, format: str, selection: dict) -> dict:
    """All that the features depend on besides the pictures, flat, as it comes back from JSON."""
    settings = {"format": format, "weights": _fingerprint(weights), **selection}
    for node, name in ((cfg.MODEL, "MODEL"), (cfg.INPUT, "INPUT")):
        settings.update(_flatten(node, f"{name}."))
    for key in list(settings):
        if key in ("MODEL.DEVICE", "MODEL.WEIGHTS") or "TRAIN" in key:
            del settings[key]
    return json.loads(json.dumps(settings))


def _flatten(node: dict, prefix: str) -> dict:
    flat = {}
    for key, value in node.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _fingerprint(weights: str) -> str:
    if not os.path.isfile(weights):
        return weights
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _check_settings(output: Path, settings: dict) -> None:
    """Refuses to mix features of different detectors in one output."""
    holds_something = any(output.iterdir()) if output.is_dir() else output.exists() and output.stat().st_size > 0
    if not holds_something:
        return
    path = _beside(output, "meta.json")
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{output}: exists, but no {path.name} beside it says how it was made; choose another output"
        ) from error
    for key in sorted(settings.keys() | earlier.keys()):
        if settings.get(key) != earlier.get(key):
            raise InputError(
                f"{output}: was made with {key} {earlier.get(key)}, now it is {settings.get(key)}; "
                "choose another output, or the same settings to go on"
            )


def _write_settings(output: Path, settings: dict) -> None:
    with whole_file(_beside(output, "meta.json"), shared=True) as file:
        file.write(json.dumps(settings, indent=2).encode())


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.name}.{suffix}")
