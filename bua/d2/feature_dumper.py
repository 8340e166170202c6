"""Region features as a by-product of Detectron2's inference loop."""

import logging
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from bua.errors import InputError
from bua.extraction import regions_from
from bua.features import FeatureWriter, open_features, open_writer
from bua.features.convert import copy_missing

logger = logging.getLogger(__name__)


class FeatureDumper(DatasetEvaluator):
    """Writes the regions of every image that ``inference_on_dataset`` shows ``AttributeRCNN``.

    Each process writes a part of its own into the folder ``<output>.parts``; when all are done, the main one puts
    them together in the order of the data set, each image once. Processes on several machines need a file system
    that they share. What an interrupted run left in the folder is replaced by the next one.

    Args:
        output: a file, or a folder for formats that are folders; must not exist yet.
        format: one of ``bua.features.FORMATS``.
        about: as for ``bua.features.open_writer``: vinvl-tsv needs the names of the classes.
        selection: keyword arguments of ``bua.extraction.select_regions``; ``convention`` should be the model's
            MODEL.BUA.BOX_CONVENTION.

    Raises:
        InputError: the output exists, or cannot be written.
    """

    def __init__(self, output: str | Path, format: str = "tsv", about: dict | None = None, **selection):
        self.output, self.format, self.about, self.selection = Path(output), format, about, selection
        self.parts = self.output.with_name(f"{self.output.name}.parts")
        self.writer: FeatureWriter | None = None
        self._opened = ExitStack()

    def reset(self) -> None:
        """Begins anew."""
        if self.output.exists():
            raise InputError(f"{self.output}: exists; remove it or choose another output")
        self._opened.close()
        comm.synchronize()
        if comm.is_main_process() and self.parts.exists():
            shutil.rmtree(self.parts)
        comm.synchronize()
        self.writer = self._opened.enter_context(open_writer(self._part(comm.get_rank()), self.format, self.about))

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Writes the regions of some images; the inputs have ``image_id``, the outputs ``objects``."""
        for x, output in zip(inputs, outputs):
            if x["image_id"] not in self.writer.done:
                self.writer.append(regions_from(output["objects"], x["image_id"], **self.selection))

    def evaluate(self) -> dict:
        """Puts the parts together. It has to be called in all processes; there are no metrics."""
        self.writer.finish()
        self._opened.close()
        counts = comm.gather(len(self.writer.done))
        if comm.is_main_process():
            self._merge([self._part(rank) for rank, count in enumerate(counts) if count])
            shutil.rmtree(self.parts)
            logger.info("%s: the features of %d images", self.output, sum(counts))
        comm.synchronize()
        return {}

    def _merge(self, parts: list[Path]) -> None:
        for part in parts:
            if not part.exists():
                raise InputError(f"{part}: written on another machine and not here; choose an output that all share")
        if len(parts) == 1:
            merged = parts[0]
        else:
            merged = self._part("all")  # apart until it is whole
            with open_writer(merged, self.format, self.about) as writer:
                for part in parts:
                    copy_missing(open_features(part), writer, str(part))
                writer.finish()
        # What lies beside it belongs to it, and goes first.
        for name in sorted(os.listdir(merged.parent), key=lambda name: name == self.output.name):
            (merged.parent / name).rename(self.output.with_name(name))

    def _part(self, name: int | str) -> Path:
        # A folder each, under the output's name: files beside a part are named after it.
        return self.parts / str(name) / self.output.name
