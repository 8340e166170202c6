"""Extracts the region features of images into a file: on one device, on several, or on several machines."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.errors import InputError, make_folder
from bua.extraction.box_arguments import box_source, crop_weights_of, names_of_boxes, region_limits
from bua.extraction.class_names import class_names
from bua.extraction.cluster import RayCluster, connect_to_ray
from bua.extraction.default_arguments import default_config, default_output, images_of_data_sets
from bua.extraction.engines import choose_engine, default_weights
from bua.extraction.extractor import NO_PROBABILITIES, Extractor, Outcome
from bua.extraction.extractor_config import CROPS, DETECTOR, ExtractorConfig, RegionChoice, find_weights, settings_of
from bua.extraction.parallel import DevicePool, devices_of, start_device_pool
from bua.extraction.progress import ExtractionSummary, Progress
from bua.extraction.run_files import (
    SETTINGS_SUFFIX,
    SHARDS_SUFFIX,
    FailureLog,
    check_settings,
    path_beside,
    settings_beside,
)
from bua.extraction.shards import (
    Shard,
    ShardFolder,
    ShardMerger,
    Written,
    explaining_write_errors,
    write_outcome,
)
from bua.extraction.sources import ImageFile, list_images
from bua.extraction.write_behind import record_behind
from bua.features import FeatureWriter, open_writer
from bua.features.ids import image_id_of, stem_of
from bua.features.readers import FORMATS_WITH_PROBABILITIES, READERS, Reader, format_for, holds_probabilities
from bua.features.store import GRID_FORMATS, check_format
from bua.io.files import exclusive, lock_beside
from bua.modeling.optimize import PRECISIONS
from bua.modeling.vinvl import META_ARCHITECTURE as VINVL
from bua.options import ON_ERROR, SHARD_SIZE

# Formats whose readers need the labels of all regions.
FORMATS_WITH_LABELS = ("lxmert-tsv", "vinvl-tsv")

# Seconds between syncs to the disk. At most the work of this time is lost when the machine crashes.
SYNC_SECONDS = 30

logger = logging.getLogger(__name__)


def extract(
    images: str | Path | None = None,
    output: str | Path | None = None,
    *,
    config_file: str | Path | None = None,
    weights: str | Path | None = None,
    overrides: Sequence[str] = (),
    format: str | None = None,
    image_root: str | Path | None = None,
    min_boxes: int | None = None,
    max_boxes: int | None = None,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    regressed: bool = False,
    boxes: str | Path | None = None,
    grid: bool = False,
    on_error: str = "skip",
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    num_gpus: int = 1,
    ray: str | None = None,
    shard_size: int = SHARD_SIZE,
    precision: str = "fp32",
    compile: bool = False,
    allow_missing: bool = False,
    vocabulary: str | Path | None = None,
    engine: str | None = None,
    feature_layer: str = "",
    reader: str | None = None,
    keep_probabilities: bool = False,
    boxes_from: str | Path | None = None,
    features_from: str = DETECTOR,
    crop_weights: str | Path | None = None,
) -> ExtractionSummary:
    """Writes the region features of images, and continues where an earlier run with the same settings stopped.

    However a run is interrupted, the record of an image is either complete or absent. Only one run at a time writes an
    output. Next to the output are ``<output>.meta.json``, the settings, which a later run must share, and, if images
    failed, ``<output>.failures.jsonl`` (``image_id``, ``path``, ``reason``). The next run tries these images again.

    Args:
        images, image_root: As for ``bua.extraction.list_images``; by default the images of DATASETS.TEST.
        output: A file, or a folder for npz, mmf, vilbert-lmdb, grid-pth, flat and flat-fp16; without ``images``, by
            default a file or folder in ``output/features`` that is named after the configuration and the data set.
        config_file, overrides: As for ``bua.config.load_cfg``; by default the configuration that belongs to
            ``weights``, or "vg_r101.yaml" without weights.
        weights: A checkpoint, the name of a released one (``bua.weights.zoo.ZOO``) or an address; by default
            MODEL.WEIGHTS of the configuration, or the newest checkpoint in its OUTPUT_DIR; "random" for random weights.
        format: One of ``bua.features.FORMATS``; by default the one that ``reader`` reads, or "tsv".
        min_boxes, max_boxes, score_threshold, nms_threshold: As for ``bua.extraction.select_regions``, by default 10,
            100, 0.2 and 0.3; for ``boxes_from`` as for ``DescribedBoxes.choose``, by default 0, 10, 0.1 and 1.
        regressed: Whether boxes are those regressed for each region's best class, instead of the proposals.
        boxes: Boxes to describe instead of proposals, as for ``bua.extraction.load_boxes``.
        grid: Whether to write the cells of the feature map, row by row, instead of regions.
        on_error: "skip" continues after an image that fails; "stop" raises InputError at the first such image.
        batch_size: Number of images that go through the network together; by default 1 on the CPU and 8 on a GPU. It
            does not change the features.
        num_workers: Number of threads per device that decode and resize images; by default the configuration's, at most
            one per core.
        device: "cpu", "cuda", ...; by default the configuration's.
        num_gpus: Number of devices, each with a process; on the CPU, the number of processes.
        ray: Address of a Ray cluster ("auto", "host:port", "local") to use instead of this machine's devices.
        shard_size: Number of images per task on Ray.
        precision: "fp32", "tf32" or "bf16", as in ``ExtractorConfig``.
        compile: Whether to compile a part of the network with torch.compile.
        allow_missing: Whether parameters that the weights lack, or have in another shape, may keep random values.
        vocabulary: Folder of objects_vocab.txt and attributes_vocab.txt, for formats that store names; by default the
            names are those of ``bua.extraction.class_names.class_names``.
        engine: "torch" or "detectron2"; by default "torch" if it has the detector (``choose_engine``).
        feature_layer: As in ``ExtractorConfig``.
        reader: One of ``bua.features.readers.READERS``, for which to write another flavour of the format.
        keep_probabilities: Whether to write the probabilities of all classes too, in float16, which readers train on.
        boxes_from: A detector whose boxes are described instead of proposals, as for
            ``bua.extraction.box_arguments.box_source``.
        features_from: "detector" describes these boxes by the features of the detector that ``config_file`` and
            ``weights`` describe; "crops" by a ResNet-50 on the parts of the image (``bua.extraction.crops``).
        crop_weights: The weights of this ResNet-50: a file, an address or "random"; by default those of ImageNet.

    Raises:
        InputError: An argument cannot be used (the message names it, and nothing has been written), the disk is full,
            or an image failed and ``on_error`` is "stop".
    """
    choice = RegionChoice(
        *region_limits(boxes_from, min_boxes, max_boxes, score_threshold, nms_threshold),
        regressed,
        None if boxes is None else str(boxes),
        grid,
        keep_probabilities,
    )
    choice.check()
    format = format_for(reader, format, "tsv")
    if images is not None and output is None:
        # A default name would be the same for all images, so that those of several commands would get into one file.
        raise InputError("output: none given; name one (--output); only the images of DATASETS.TEST have a default")
    source = box_source(
        boxes_from, overrides, choice, features_from=features_from, config_file=config_file, weights=weights
    )
    if source is not None and features_from == CROPS:
        config_file, weights, engine = source.config_file, source.weights, source.engine
    config_file = config_file or default_config(weights)
    engine = choose_engine(engine, config_file, weights or "", overrides)
    weights = default_weights(engine, weights, config_file)
    config = ExtractorConfig(
        None if config_file is None else str(config_file),
        tuple(overrides),
        str(weights),
        choice,
        precision,
        compile,
        batch_size,
        allow_missing=allow_missing,
        engine=engine,
        feature_layer=feature_layer,
        boxes_from=source,
        features_from=features_from,
        crop_weights=crop_weights_of(features_from, crop_weights),
    )
    cfg = config.cfg(device)
    if num_workers is None:
        num_workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    config = replace(config, weights=find_weights(weights, cfg, config_file), num_workers=num_workers)
    if ray is not None and num_gpus != 1:
        raise InputError("--ray and --num-gpus: choose one; on a cluster every task uses one device")
    output = Path(output) if output is not None else default_output(cfg, config_file or f"{weights}", format)
    names = _names(cfg, weights, config, vocabulary)
    _check_options(config, cfg, format, reader, on_error, names)
    settings = settings_of(config, cfg, format, reader)
    check_settings(output, settings)
    id_of = stem_of if format == "lxmert-tsv" or (reader and READERS[reader].file_names) else None
    if images is None:
        files = images_of_data_sets(cfg, id_of)
    else:
        files = list_images(images, image_root, id_of=id_of or image_id_of)

    about: dict[str, object] = {"settings": settings, **names}
    shards = ShardFolder(path_beside(output, SHARDS_SUFFIX).absolute(), format, about, reader)
    extractors: AbstractContextManager[Extractor | DevicePool | RayCluster]
    if ray is not None:
        extractors = connect_to_ray(config, ray, shards, cfg.MODEL.DEVICE, shard_size)
    elif num_gpus != 1:
        extractors = start_device_pool(config, devices_of(cfg.MODEL.DEVICE, num_gpus), shards)
    else:
        extractors = _load_extractor(config, cfg.MODEL.DEVICE)
    make_folder(output.parent)
    with extractors as extractor, exclusive(output, lock_beside(path_beside(output, SETTINGS_SUFFIX))):
        check_settings(output, settings)
        # The settings are written first, so that a killed run never leaves an output without them. Also opening and
        # closing a writer writes files.
        with (
            settings_beside(output, settings),
            explaining_write_errors(output),
            open_writer(output, format, about, reader) as writer,
        ):
            merger = ShardMerger(shards, writer)
            # An image that the output cannot hold is extracted again, so that its failure is listed.
            merger.merge_rest()
            merger.sync()
            summary = write_features(
                extractor, files, writer, FailureLog(output), merger=merger, stop_on_error=on_error == "stop"
            )
            merger.remove()
    return summary


def write_features(
    extractor: Callable[[list[ImageFile]], Iterator[Outcome | Written | Shard]],
    images: list[ImageFile],
    writer: FeatureWriter,
    failures: FailureLog,
    *,
    merger: ShardMerger | None = None,
    stop_on_error: bool = False,
) -> ExtractionSummary:
    """Writes the outcomes of those ``images`` that ``writer`` does not have, and shows the progress. Meanwhile, the
    extractor works on the next images.

    Args:
        extractor: An ``Extractor``, a ``DevicePool`` or a ``RayCluster``.
        merger: Merges the shards of the last two into ``writer``.

    Raises:
        InputError: The output cannot be written, or an image failed and ``stop_on_error`` is set.
    """
    missing = [image for image in images if image.image_id not in writer.done]
    summary = ExtractionSummary(failures.output, skipped=len(images) - len(missing))
    recorder = _Recorder(missing, writer, merger, failures, summary, stop_on_error)
    start = time.perf_counter()
    try:
        with Progress(summary, len(images)) as progress:
            for finished in record_behind(recorder.record, extractor(missing)):
                if finished:
                    progress.update()
        recorder.finish()
    except KeyboardInterrupt:
        logger.warning("interrupted after %d images; run the same command again to continue", summary.done)
        raise
    summary.seconds = time.perf_counter() - start
    return summary


class _Recorder:
    """Writes outcomes, merges shards, lists failures and counts all of them in ``summary``."""

    def __init__(
        self,
        missing: list[ImageFile],
        writer: FeatureWriter,
        merger: ShardMerger | None,
        failures: FailureLog,
        summary: ExtractionSummary,
        stop_on_error: bool,
    ):
        self.writer, self.merger, self.failures, self.summary = writer, merger, failures, summary
        self.stop_on_error = stop_on_error
        # The images that have not failed.
        self.images = {image.image_id: image for image in missing}
        self.last_sync = time.perf_counter()

    def record(self, event: Outcome | Written | Shard) -> bool:
        """Records one event. Returns whether an image is finished by it."""
        with explaining_write_errors(self.failures.output):
            if isinstance(event, Shard):
                assert self.merger is not None
                self._count_unmerged(self.merger.merge(event))
            else:
                result = write_outcome(self.writer, event) if isinstance(event, Outcome) else event
                if isinstance(result, Written):
                    self.summary.done += 1
                else:
                    self._fail(result)
            if time.perf_counter() - self.last_sync > SYNC_SECONDS:
                (self.merger or self.writer).sync()
                self.last_sync = time.perf_counter()
        return not isinstance(event, Shard)

    def finish(self) -> None:
        """Merges what is left in shards, and finishes the output."""
        with explaining_write_errors(self.failures.output):
            if self.merger is not None:
                self._count_unmerged(self.merger.merge_rest())
                lost = [image_id for image_id in self.images if image_id not in self.writer.done]
                self._count_unmerged(dict.fromkeys(lost, "its shard is damaged; run the same command again"))
            self.writer.finish()

    def _count_unmerged(self, reasons: Mapping[int | str, str]) -> None:
        """Counts images as failed that were counted as done when they were written into a shard."""
        for image_id, reason in reasons.items():
            # Shards may have images of an earlier run, which this one was not asked for.
            if image_id in self.images:
                self.summary.done -= 1
                self._fail(Outcome(self.images[image_id], None, reason))

    def _fail(self, outcome: Outcome) -> None:
        del self.images[outcome.image.image_id]
        self.failures.append(outcome)
        self.summary.failed += 1
        if self.stop_on_error:
            path, reason = outcome.image.path, outcome.reason or ""
            failure = reason if reason.startswith(path) else f"{path}: {reason}"
            raise InputError(f"{failure}; --on-error skip continues with the other images")


@contextmanager
def _load_extractor(config: ExtractorConfig, device: str) -> Iterator[Extractor]:
    yield Extractor.from_config(config, device)


def _check_options(
    config: ExtractorConfig,
    cfg: CfgNode,
    format: str,
    reader: str | None,
    on_error: str,
    names: Mapping[str, list[str]],
) -> None:
    check_format(format)
    needs = READERS[reader] if reader else Reader(())
    target = f"format {format}" + (f" for {reader}" if reader else "")
    if config.choice.keep_probabilities and not holds_probabilities(format, reader):
        raise InputError(
            f"{target}: has no place for the probabilities of all classes; leave out --keep-probabilities, or use "
            f"{', '.join(FORMATS_WITH_PROBABILITIES)}"
        )
    if config.choice.keep_probabilities and (config.boxes_from is not None or cfg.MODEL.META_ARCHITECTURE == VINVL):
        raise InputError(NO_PROBABILITIES)
    if config.precision not in PRECISIONS:
        raise InputError(f"precision {config.precision!r}: unknown; use one of {', '.join(PRECISIONS)}")
    if on_error not in ON_ERROR:
        raise InputError(f"on error {on_error!r}: unknown; use one of {', '.join(ON_ERROR)}")
    selects = not (config.choice.boxes or config.choice.grid)
    if format == "hdf5" and selects and not needs.any_number and config.choice.min_boxes != config.choice.max_boxes:
        raise InputError(
            "format hdf5: needs the same number of boxes in every image; add --min-boxes 36 --max-boxes 36, or use "
            "ban-hdf5"
        )
    if format in GRID_FORMATS and not config.choice.grid:
        raise InputError(f"format {format}: holds feature maps of whole images, not regions; add --grid")
    if (format in FORMATS_WITH_LABELS or needs.labels) and config.choice.grid:
        raise InputError(f"{target}: needs labels, and grid cells have none; use tsv, npz or flat")
    if format == "oscar-tsv" and cfg.MODEL.BUA.VINVL.SPATIAL_FEATURES:
        raise InputError("format oscar-tsv: has the place of each region; leave out MODEL.BUA.VINVL.SPATIAL_FEATURES")
    if (format == "vinvl-tsv" or needs.names) and "object_vocabulary" not in names:
        raise InputError(
            f"{target}: needs the names of the detector's classes, which are not known; name their folder "
            "(--vocabulary)"
        )
    if format == "lxmert-tsv" and config.boxes_from is not None and config.features_from != DETECTOR:
        raise InputError("format lxmert-tsv: needs attributes, and crops have none; use tsv or npz")
    if format == "lxmert-tsv" and not cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        raise InputError(
            "format lxmert-tsv: needs attributes, but MODEL.BUA.ATTRIBUTES.ENABLED is False; use tsv or npz"
        )


def _names(
    cfg: CfgNode, weights: str | Path | None, config: ExtractorConfig, vocabulary: str | Path | None
) -> dict[str, list[str]]:
    """Returns the names of the detector's classes under "object_vocabulary" and "attribute_vocabulary", as far as they
    are known."""
    if config.features_from == CROPS and config.boxes_from is not None:
        objects, attributes = names_of_boxes(config.boxes_from, vocabulary), None
    else:
        objects, attributes = class_names(cfg, weights or "", config.weights, vocabulary, config.engine)
        if config.boxes_from is not None:
            objects = names_of_boxes(config.boxes_from, None)
    return {
        name: values
        for name, values in {"object_vocabulary": objects, "attribute_vocabulary": attributes}.items()
        if values
    }
