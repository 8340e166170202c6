"""Region features as a by-product of Detectron2's inference loop."""

import logging
import shutil
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from bua.errors import InputError
from bua.extraction import regions_from
from bua.features import FeatureWriter, open_features, open_writer

logger = logging.getLogger(__name__)


class FeatureDumper(DatasetEvaluator):
    """Writes the regions of every picture that ``inference_on_dataset`` shows ``AttributeRCNN``.

    Each process writes a part of its own into the folder ``<output>.parts``; when all are done, the main one puts
    them together in the order of the data set, each picture once. Processes on several machines need a file system
    that they share. What an interrupted run left in the folder is replaced by the next one.

    Args:
        output: a file, or a folder for npz; must not exist yet.
        format: one of ``bua.features.FORMATS``.
        selection: keyword arguments of ``bua.extraction.select_regions``; ``convention`` should be the model's
            MODEL.BUA.BOX_CONVENTION.

    Raises:
        InputError: the output exists, or cannot be written.
    """

    def __init__(self, output: str | Path, format: str = "tsv", **selection):
        self.output, self.format, self.selection = Path(output), format, selection
        self.parts = self.output.with_name(f"{self.output.name}.parts")
        self.writer: FeatureWriter | None = None

    def reset(self) -> None:
        """Begins anew."""
        if self.output.exists():
            raise InputError(f"{self.output}: exists; remove it or choose another output")
        comm.synchronize()
        if comm.is_main_process() and self.parts.exists():
            shutil.rmtree(self.parts)
        comm.synchronize()
        self.writer = open_writer(self._part(comm.get_rank()), self.format)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Writes the regions of some pictures; the inputs have ``image_id``, the outputs ``objects``."""
        for x, output in zip(inputs, outputs):
            if x["image_id"] not in self.writer.done:
                self.writer.append(regions_from(output["objects"], x["image_id"], **self.selection))

    def evaluate(self) -> dict:
        """Puts the parts together. It has to be called in all processes; there are no metrics."""
        self.writer.close()
        counts = comm.gather(len(self.writer.done))
        if comm.is_main_process():
            self._merge([self._part(rank) for rank, count in enumerate(counts) if count])
            shutil.rmtree(self.parts)
            logger.info("%s: the features of %d pictures", self.output, sum(counts))
        comm.synchronize()
        return {}

    def _merge(self, parts: list[Path]) -> None:
        for part in parts:
            if not part.exists():
                raise InputError(f"{part}: written on another machine and not here; choose an output that all share")
        if len(parts) == 1:
            parts[0].rename(self.output)
            return
        # Under another name until it is whole.
        merged = self.parts / "all"
        writer = open_writer(merged, self.format)
        for part in parts:
            for regions in open_features(part).values():
                if regions.image_id not in writer.done:
                    writer.append(regions)
        writer.close()
        merged.rename(self.output)

    def _part(self, rank: int) -> Path:
        return self.parts / str(rank)
