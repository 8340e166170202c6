"""The names of a detector's classes, from wherever they are known."""

import logging
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.detection.catalog import vocabulary_folder
from bua.detection.description import description_of
from bua.errors import InputError
from bua.extraction.engines import DETECTRON2, TORCH, detectron2_plugin
from bua.features.vinvl_rows import Names
from bua.vocabulary import Vocabulary
from bua.weights.zoo import VINVL_LABELS, ZOO, fetch, fetch_vocabularies

logger = logging.getLogger(__name__)


def class_names(
    cfg: CfgNode,
    weights: str | Path,
    path: str | Path,
    folder: str | Path | None = None,
    engine: str = TORCH,
) -> tuple[list[str] | None, list[str] | None]:
    """Returns the names of a detector's objects and of its attributes, counted from 0; None for those that are not
    known, and an empty list if the detector has no attribute head.

    They are those in ``folder``, or else those that the checkpoint holds, those of VinVL's file beside it, those of the
    data set in DATASETS.TEST, or those of released weights, provided that they are as many as the detector has classes.

    Args:
        weights: What the user named: a file, a name in ``ZOO``, an address, or "random".
        path: The file of the weights.
        folder: Folder of objects_vocab.txt and attributes_vocab.txt, or a file in the layout of VinVL's
            VG-SGG-dicts-vgoi6-clipped.json.
        engine: With "detectron2", the names may also be those of Detectron2's metadata of the data set.

    Raises:
        InputError: The vocabulary in ``folder`` cannot be read, or has another number of classes than the detector.
    """
    size = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    objects = _names(cfg, weights, path, folder, "objects", size)
    if objects is None and engine == DETECTRON2:
        objects = _if_fitting(detectron2_plugin().catalog_names(cfg) or (), size)
    if not cfg.MODEL.BUA.ATTRIBUTES.ENABLED:
        return objects, []
    return objects, _names(cfg, weights, path, folder, "attributes", cfg.MODEL.BUA.ATTRIBUTES.NUM_CLASSES)


def names_in(vocabulary: str | Path, kind: str) -> list[str]:
    """Returns the names of classes, counted from 0.

    Args:
        vocabulary: Folder of objects_vocab.txt and attributes_vocab.txt, or a file in the layout of VinVL's
            VG-SGG-dicts-vgoi6-clipped.json.
        kind: "objects" or "attributes".

    Raises:
        InputError: The file cannot be read.
    """
    file = _file_of(Path(vocabulary), kind)
    return _names_in_label_map(file, kind) if file.suffix == ".json" else Vocabulary.read(file).names


def _file_of(vocabulary: Path, kind: str) -> Path:
    return vocabulary if vocabulary.suffix == ".json" else vocabulary / f"{kind}_vocab.txt"


def _names(
    cfg: CfgNode, weights: str | Path, path: str | Path, folder: str | Path | None, kind: str, size: int
) -> list[str] | None:
    if folder is not None:
        names = names_in(folder, kind)
        if len(names) != size:
            raise InputError(
                f"{_file_of(Path(folder), kind)}: {len(names)} classes, but the detector has {size}; give the "
                "vocabulary that it was trained with"
            )
        return names
    description = description_of(path)
    if description is not None:
        return _if_fitting(getattr(description, kind), size)
    if (beside := Path(path).with_name(VINVL_LABELS)).is_file():
        return _if_fitting(_names_in_label_map(beside, kind), size)
    if cfg.DATASETS.TEST and (file := vocabulary_folder(cfg.DATASETS.TEST[0]) / f"{kind}_vocab.txt").is_file():
        return _if_fitting(Vocabulary.read(file).names, size)
    if str(weights) in ZOO:
        try:
            labels = ZOO[str(weights)].labels
            names = _names_in_label_map(fetch(labels), kind) if labels else fetch_vocabularies()[kind]
            return _if_fitting(names, size)
        except InputError as error:
            logger.warning("%s; the names of %s are left out", error, kind)
    return None


def _names_in_label_map(file: Path, kind: str) -> list[str]:
    """Returns the names of the "objects" or "attributes" in one of VinVL's dictionaries."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    names = getattr(Names.read(file), kind)
    if names is None:
        key = {"objects": "label_to_idx", "attributes": "attribute_to_idx"}[kind]
        raise InputError(f"{file}: has no {key!r}, from names to numbers from 1 on; give VinVL's {VINVL_LABELS}")
    return list(names)


def _if_fitting(names: Sequence[str], size: int) -> list[str] | None:
    return list(names) if len(names) == size else None
