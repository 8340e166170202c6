"""Writes the features of a data set during a training under Detectron2, and after it."""

import logging
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from bua.d2.feature_dumper import FeatureDumper
from bua.d2.region_detector import Detectron2Detector
from bua.detection.catalog import get_dataset
from bua.errors import InputError, make_folder
from bua.extraction import RegionChoice
from bua.extraction.default_arguments import EXTENSIONS
from bua.features.store import GRID_FORMATS, check_format

logger = logging.getLogger(__name__)


class DumpFeatures(HookBase):
    """Writes the features of the images of DATASETS.TEST, as ``bua extract`` writes them.

    The name of an output has the data set and the number of iterations, such as ``shapes_test_0005000.tsv``, so that no
    dump overwrites another. One that is there already, as after ``--resume`` from an earlier checkpoint, is kept. All
    processes share the images, as in ``FeatureDumper``. A dump that is interrupted leaves no output, and the next one
    of the same iteration replaces its parts.

    ``bua.d2.Trainer`` adds this hook if MODEL.BUA.DUMP.OUTPUT is set. To add it to another trainer, call
    ``trainer.register_hooks``; its ``build_test_loader`` then reads the images, and the names of its data sets must be
    known to ``bua.detection.catalog``.
    """

    def __init__(self, period: int, cfg, output: str | Path, format: str = "tsv", **selection):
        """
        Args:
            period: Number of iterations between dumps; with 0 there is only the one after the last iteration.
            cfg: The model's configuration.
            output: Folder of the outputs.
            format: One of ``bua.features.FORMATS``.
            selection: ``min_boxes``, ``max_boxes``, ``score_threshold`` and ``nms_threshold``, as for
                ``bua.extraction.select_regions``.

        Raises:
            InputError: The format cannot hold regions of this kind, or the limits are out of range.
        """
        choice = RegionChoice(**selection)
        choice.check()
        check_format(format)
        if format in GRID_FORMATS:
            raise InputError(f"format {format}: holds feature maps of whole images, not regions; use another format")
        if format == "hdf5" and choice.min_boxes != choice.max_boxes:
            raise InputError("format hdf5: needs the same number of boxes in every image; use ban-hdf5")
        self.period, self.cfg, self.output, self.format = period, cfg, Path(output), format
        self.selection = {**selection, "convention": cfg.MODEL.BUA.BOX_CONVENTION}

    def after_step(self) -> None:
        """Dumps every ``period`` iterations, except after the last one."""
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self.dump(done)

    def after_train(self) -> None:
        """Dumps if the training is complete."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.dump(self.trainer.max_iter)

    def dump(self, iteration: int) -> None:
        """Writes the features of all data sets. All processes must call it.

        Args:
            iteration: Number of iterations so far, for the names of the outputs.
        """
        model = self.trainer.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        detector = Detectron2Detector(self.cfg, model)
        make_folder(self.output)
        training = model.training
        for name in self.cfg.DATASETS.TEST:
            path = self.output / f"{Path(name).stem}_{iteration:07d}{EXTENSIONS.get(self.format, '')}"
            if any(comm.all_gather(path.exists())):
                logger.info("%s: is there already", path)
                continue
            dumper = FeatureDumper(path, self.format, self._about(name), **self.selection)
            inference_on_dataset(detector, self.trainer.build_test_loader(self.cfg, name), dumper)
        model.train(training)

    def _about(self, name: str) -> dict[str, list[str]]:
        """Returns the names of the classes, for formats that store them."""
        dataset = get_dataset(name, self.cfg.DATASETS.FILES)
        about = {"object_vocabulary": dataset.objects.names}
        if self.cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
            about["attribute_vocabulary"] = dataset.attribute_names.names
        return about
