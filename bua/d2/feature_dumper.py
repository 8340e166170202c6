"""Writes region features during Detectron2's inference loop."""

import logging
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from bua.errors import InputError
from bua.extraction import regions_from
from bua.extraction.shards import explaining_write_errors
from bua.features import FeatureWriter, open_features, open_writer
from bua.features.convert import copy_missing

logger = logging.getLogger(__name__)


class FeatureDumper(DatasetEvaluator):
    """Writes the regions of every image that ``inference_on_dataset`` processes with ``AttributeRCNN``.

    Each process writes a part of its own into the folder ``<output>.parts``. When all are done, the main process merges
    the parts in the order of the data set, with each image once. Processes on several machines need a shared file
    system. A run that is killed before its end leaves no output. The next run replaces its files in ``<output>.parts``
    and starts from the beginning, since Detectron2 runs the model on every image.

    Args:
        output: File to write, or folder for formats that are folders. It must not exist yet.
        format: One of ``bua.features.FORMATS``.
        about: Argument of ``bua.features.open_writer``. The format vinvl-tsv needs the names of the classes.
        selection: Keyword arguments of ``bua.extraction.select_regions``. ``convention`` should be the model's
            MODEL.BUA.BOX_CONVENTION.

    Raises:
        InputError: The output exists or cannot be written, or an image's regions cannot be stored in the format.
    """

    def __init__(self, output: str | Path, format: str = "tsv", about: dict | None = None, **selection):
        self.output, self.format, self.about, self.selection = Path(output), format, about, selection
        self.parts = self.output.with_name(f"{self.output.name}.parts")
        self._writer: FeatureWriter | None = None
        self._opened = ExitStack()

    def reset(self) -> None:
        """Starts with empty parts."""
        if self.output.exists():
            raise InputError(f"{self.output}: already exists; remove it or choose another output")
        self._opened.close()
        comm.synchronize()
        if comm.is_main_process() and self.parts.exists():
            with explaining_write_errors(self.parts):
                shutil.rmtree(self.parts)
        comm.synchronize()
        self._writer = self._opened.enter_context(open_writer(self._part(comm.get_rank()), self.format, self.about))

    @property
    def writer(self) -> FeatureWriter:
        """The writer of this process's part. ``reset`` opens it."""
        assert self._writer is not None, "reset() must be called first"
        return self._writer

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Writes the regions of some images. The inputs have ``image_id``, and the outputs have ``objects``."""
        for x, output in zip(inputs, outputs):
            if x["image_id"] not in self.writer.done:
                regions = regions_from(output["objects"], x["image_id"], **self.selection)
                with explaining_write_errors(self.output):
                    self.writer.append(regions)

    def evaluate(self) -> dict:
        """Merges the parts and returns an empty dict. All processes must call it."""
        with explaining_write_errors(self.output):
            self.writer.finish()
            self._opened.close()
        counts = comm.gather(len(self.writer.done))
        if comm.is_main_process():
            with explaining_write_errors(self.output):
                self._merge([self._part(rank) for rank, count in enumerate(counts) if count])
                shutil.rmtree(self.parts)
            logger.info("%s: the features of %d images", self.output, sum(counts))
        comm.synchronize()
        return {}

    def _merge(self, parts: list[Path]) -> None:
        for part in parts:
            if not part.exists():
                raise InputError(f"{part}: not found; write to a file system that all machines share")
        if len(parts) == 1:
            merged = parts[0]
        else:
            merged = self._part("all")  # in a folder of its own until it is complete
            with open_writer(merged, self.format, self.about) as writer:
                for part in parts:
                    copy_missing(open_features(part), writer, str(part))
                writer.finish()
        # Further files of the format are beside it and are moved first.
        for name in sorted(os.listdir(merged.parent), key=lambda name: name == self.output.name):
            (merged.parent / name).rename(self.output.with_name(name))

    def _part(self, name: int | str) -> Path:
        # Each part has its own folder and the output's name, because further files of a format are named after it.
        return self.parts / str(name) / self.output.name
