"""Images in, a file of region features out: on one device, on many, or on many machines."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from bua.detection.catalog import vocabulary_folder
from bua.errors import InputError, make_folder
from bua.extraction.cluster import SHARD_SIZE, Cluster, on_ray
from bua.extraction.extractor import Extractor, Outcome
from bua.extraction.extractor_config import ExtractorConfig, RegionChoice, find_weights, settings_of
from bua.extraction.parallel import devices_of, on_devices
from bua.extraction.run_files import SETTINGS, SHARDS, Failures, beside, check_settings, write_settings
from bua.extraction.sources import ImageFile, list_images
from bua.features import FORMATS, FeatureWriter, open_writer
from bua.features.ids import image_id_of, stem_of
from bua.io.files import exclusive
from bua.modeling.optimize import PRECISIONS
from bua.vocabulary import Vocabulary

ON_ERROR = ("skip", "stop")

# Formats that have no place for an image without labels.
LABELLED = ("lxmert-tsv", "vinvl-tsv")

# What a machine that dies may cost.
SYNC_SECONDS = 30

# Between lines of progress in a log.
LINE_SECONDS = 30

# Outcomes that wait to be written while the network goes on.
BEHIND = 64

logger = logging.getLogger(__name__)


@dataclass
class ExtractionSummary:
    """What a run did.

    Attributes:
        done: images whose features this run wrote.
        skipped: images that were in the output before.
        failed: images listed in ``<output>.failures.jsonl``.
        seconds: from the first image to the last.
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
    regressed: bool = False,
    boxes: str | Path | None = None,
    grid: bool = False,
    on_error: str = "skip",
    batch_size: int = 1,
    num_workers: int | None = None,
    device: str | None = None,
    num_gpus: int = 1,
    ray: str | None = None,
    shard_size: int = SHARD_SIZE,
    precision: str = "fp32",
    compile: bool = False,
    allow_missing: bool = False,
    vocabulary: str | Path | None = None,
) -> ExtractionSummary:
    """Writes the region features of images, and goes on where an earlier run with the same settings stopped.

    A record is written whole or not at all, whatever stops the run; one run at a time writes an output. Beside it lie
    ``<output>.meta.json`` (the settings, which a later run must share) and, where images failed,
    ``<output>.failures.jsonl`` (``image_id``, ``path``, ``reason``). The next run tries these again.

    Args:
        images, image_root: as for ``bua.extraction.list_images``.
        output: a file, or a folder for npz, mmf, vilbert-lmdb, flat and flat-fp16.
        config_file, overrides: as for ``bua.config.load_cfg``.
        weights: a checkpoint, a released one's name (``bua.weights.zoo.ZOO``) or an address; by default the
            configuration's MODEL.WEIGHTS; "random" for random weights.
        format: one of ``bua.features.FORMATS``.
        min_boxes, max_boxes, score_threshold, nms_threshold: as for ``bua.extraction.select_regions``.
        regressed: whether boxes are those regressed for each region's best class, not the proposals.
        boxes: boxes to describe instead of proposals, as for ``bua.extraction.load_boxes``.
        grid: whether to write the cells of the feature map, row by row, instead of regions.
        on_error: "skip" goes on after an image that fails; "stop" raises InputError at the first.
        batch_size: images of one size a step; features are the same whatever it is.
        num_workers: threads that decode and resize, for each device; by default the configuration's, at most one a
            core.
        device: "cpu", "cuda", ...; by default the configuration's.
        num_gpus: devices, with a process each; on the CPU that many processes.
        ray: a Ray cluster's address ("auto", "host:port", "local") to work on instead of this machine's devices.
        shard_size: images a task on Ray.
        precision: "fp32" or "bf16", of the convolutions.
        compile: whether to compile the network with torch.compile first.
        allow_missing: whether parameters that the weights lack, or have in another shape, may keep random values.
        vocabulary: the folder of objects_vocab.txt and attributes_vocab.txt, for formats that hold names; by default
            that of DATASETS.TEST, where it fits the detector.

    Raises:
        InputError: names what cannot be used, before anything is written; or the disk is full; or an image failed
            and ``on_error`` is "stop".
    """
    output = Path(output)
    choice = RegionChoice(
        min_boxes, max_boxes, score_threshold, nms_threshold, regressed, None if boxes is None else str(boxes), grid
    )
    choice.check()
    config = ExtractorConfig(
        str(config_file), tuple(overrides), "", choice, precision, compile, batch_size, allow_missing=allow_missing
    )
    cfg = config.cfg(device)
    if num_workers is None:
        num_workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    config = replace(config, weights=find_weights(weights, cfg, config_file), num_workers=num_workers)
    _check(config, cfg, format, on_error)
    if ray is not None and num_gpus != 1:
        raise InputError("--ray and --num-gpus: choose one; on a cluster every task takes a device")
    names = _vocabularies(cfg, vocabulary)
    settings = settings_of(config, cfg, format)
    check_settings(output, settings)
    pictures = list_images(images, image_root, id_of=stem_of if format == "lxmert-tsv" else image_id_of)

    if ray is not None:
        workers = on_ray(config, ray, beside(output, SHARDS), cfg.MODEL.DEVICE, shard_size)
    elif num_gpus != 1:
        workers = on_devices(config, devices_of(cfg.MODEL.DEVICE, num_gpus))
    else:
        workers = _here(config, cfg.MODEL.DEVICE)
    make_folder(output.parent)
    # The settings are there before the output is, so that no moment is left in which a kill makes it nobody's.
    with workers as extractor, exclusive(beside(output, SETTINGS)):
        check_settings(output, settings)
        with _room_for(output):
            write_settings(output, settings)
        with open_writer(output, format, {"settings": settings, **names}) as writer:
            summary = write(extractor, pictures, writer, Failures(output), stop_on_error=on_error == "stop")
            if isinstance(extractor, Cluster):
                extractor.remove()
    return summary


def write(
    extractor: Callable[[list[ImageFile]], Iterator[Outcome]],
    images: list[ImageFile],
    writer: FeatureWriter,
    failures: Failures,
    *,
    stop_on_error: bool = False,
) -> ExtractionSummary:
    """Writes the outcomes of those ``images`` that ``writer`` does not have, with progress, while the extractor is at
    work on the next.

    Args:
        extractor: an ``Extractor``, a ``Pool`` or a ``Cluster``.

    Raises:
        InputError: the output cannot be written; or an image failed and ``stop_on_error``.
    """
    missing = [image for image in images if image.image_id not in writer.done]
    summary = ExtractionSummary(skipped=len(images) - len(missing))
    start = last_sync = time.perf_counter()

    def record(outcome: Outcome) -> None:
        nonlocal last_sync
        with _room_for(failures.output):
            if outcome.regions is not None:
                try:
                    writer.append(outcome.regions)
                    summary.done += 1
                except InputError as error:
                    outcome = Outcome(outcome.image, None, str(error))
            if outcome.regions is None:
                failures.append(outcome)
                summary.failed += 1
                if stop_on_error:
                    raise InputError(f"{outcome.image.path}: {outcome.reason}; --on-error skip goes on without it")
            if time.perf_counter() - last_sync > SYNC_SECONDS:
                writer.sync()
                last_sync = time.perf_counter()

    try:
        with _Progress(summary, len(images)) as progress:
            for _ in _behind(record, extractor(missing)):
                progress.update()
        with _room_for(failures.output):
            writer.finish()
    except KeyboardInterrupt:
        logger.warning("stopped after %d images; the same command goes on from there", summary.done)
        raise
    summary.seconds = time.perf_counter() - start
    return summary


def _behind(record: Callable[[Outcome], None], outcomes: Iterator[Outcome]) -> Iterator[None]:
    """Calls ``record`` with one outcome after the other, in a thread of its own; yields for each that is recorded."""
    with ThreadPoolExecutor(1, "write") as thread:
        waiting: deque[Future] = deque()
        try:
            for outcome in outcomes:
                waiting.append(thread.submit(record, outcome))
                while waiting and (waiting[0].done() or len(waiting) > BEHIND):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except Exception:
            thread.shutdown(cancel_futures=True)
            raise
        # After Ctrl-C, what is waiting is written still.


@contextmanager
def _room_for(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written: {error.strerror or error}; make room, and the same command goes on"
        ) from error


@contextmanager
def _here(config: ExtractorConfig, device: str) -> Iterator[Extractor]:
    yield Extractor(config.load(device), config.choice, batch_size=config.batch_size, num_workers=config.num_workers)


class _Progress:
    """A bar on a terminal; elsewhere a line in the log now and then."""

    def __init__(self, summary: ExtractionSummary, total: int):
        self.summary, self.total = summary, total
        self.start = self.last_line = time.perf_counter()
        self.bar = tqdm(desc="extract", total=total, initial=summary.skipped, unit="img", disable=None)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.set_postfix(failed=self.summary.failed, refresh=False)
        self.bar.update()
        now = time.perf_counter()
        if self.bar.disable and now - self.last_line > LINE_SECONDS:
            self.last_line = now
            done = self.summary.done + self.summary.failed
            rate = done / (now - self.start)
            left = self.total - self.summary.skipped - done
            logger.info(
                "%d of %d images, %.3g a second, %s left, %d failed",
                self.total - left,
                self.total,
                rate,
                timedelta(seconds=round(left / rate)),
                self.summary.failed,
            )


def _check(config: ExtractorConfig, cfg, format: str, on_error: str) -> None:
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(FORMATS)}")
    if config.precision not in PRECISIONS:
        raise InputError(f"precision {config.precision!r}: unknown; use one of {', '.join(PRECISIONS)}")
    if on_error not in ON_ERROR:
        raise InputError(f"on error {on_error!r}: unknown; use one of {', '.join(ON_ERROR)}")
    counted = not (config.choice.boxes or config.choice.grid)
    if format == "hdf5" and counted and config.choice.min_boxes != config.choice.max_boxes:
        raise InputError(
            "format hdf5: needs as many boxes in every image; add --min-boxes 36 --max-boxes 36, or use ban-hdf5"
        )
    if format in LABELLED and config.choice.grid:
        raise InputError(f"format {format}: needs labels, and cells of a grid have none; use tsv, npz or flat")
    if format == "lxmert-tsv" and not cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        raise InputError(
            "format lxmert-tsv: needs attributes, but MODEL.BUA.ATTRIBUTES.ENABLED is False; use tsv or npz"
        )


def _vocabularies(cfg, folder: str | Path | None) -> dict[str, list[str]]:
    """The names of the detector's classes, where they are known."""
    names = {}
    sizes = {"objects": cfg.MODEL.ROI_HEADS.NUM_CLASSES}
    if cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        sizes["attributes"] = cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES
    for kind, size in sizes.items():
        default = vocabulary_folder(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else Path()
        path = Path(folder or default) / f"{kind}_vocab.txt"
        if folder is None and not path.is_file():
            continue
        vocabulary = Vocabulary.read(path)
        if len(vocabulary) == size:
            names[f"{kind.removesuffix('s')}_vocabulary"] = vocabulary.names
        elif folder is not None:
            raise InputError(f"{path}: {len(vocabulary)} classes, the detector has {size}; give its own vocabulary")
    return names
