"""The names of a detector's classes, from wherever they are known."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.checkpoint import identify
from bua.detection.catalog import vocabulary_folder
from bua.detection.description import description_of
from bua.download.catalog import GENOME_LISTS, GENOME_VOCABULARIES
from bua.errors import InputError
from bua.extraction.engines import DETECTRON2, TORCH, detectron2_plugin
from bua.features.vinvl_rows import Names
from bua.regular_files import read_regular
from bua.vocabulary import Vocabulary
from bua.weights.cache import place_of
from bua.weights.zoo import VINVL_LABELS, ZOO, Release, fetch, fetch_vocabularies

# Numbers of the names that the original published, and the layouts of the released detectors that have these names.
PUBLISHED_SIZES = {"objects": 1600, "attributes": 400}
PUBLISHED_LAYOUTS = ("caffe", "milvlg-caffe", "airsplay", "grid-feats")

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

    They are those in ``folder``, or else those that the checkpoint holds, those of VinVL's file beside it, those that
    were published for released weights, or those of the data set in DATASETS.TEST, provided that they are as many as
    the detector has classes. A file is that of released weights if it has one of ``PUBLISHED_LAYOUTS`` and as many
    classes; for a file, nothing is downloaded.

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
    local = _vocabulary_of_data(cfg, kind)
    if str(weights) in ZOO:
        published = _names_of_release(ZOO[str(weights)], local, kind)
        return None if published is None else _if_fitting(published, size)
    if size == PUBLISHED_SIZES[kind] and Path(path).is_file() and identify(path).name in PUBLISHED_LAYOUTS:
        return _names_of_released_file(Path(path), local, kind)
    return None if local is None else _if_fitting(Vocabulary.read(local).names, size)


def _vocabulary_of_data(cfg: CfgNode, kind: str) -> Path | None:
    """Returns the file of the names of the data set in DATASETS.TEST, or None if there is none."""
    if not cfg.DATASETS.TEST:
        return None
    file = vocabulary_folder(cfg.DATASETS.TEST[0]) / f"{kind}_vocab.txt"
    return file if file.is_file() else None


def _names_of_release(release: Release, local: Path | None, kind: str) -> list[str] | None:
    """Returns the published names of weights in ``ZOO``, which are downloaded if they are not on this machine.

    Args:
        local: The file of the names of the data set, which may be the published one.
    """
    try:
        if release.labels:
            return _names_in_label_map(fetch(release.labels), kind)
        return _published_names(local, kind) or fetch_vocabularies()[kind]
    except InputError as error:
        logger.warning("%s; the names of %s are left out", error, kind)
        return None


def _names_of_released_file(path: Path, local: Path | None, kind: str) -> list[str] | None:
    """Returns the published names for a file of weights that is recognised as a released one.

    Args:
        local: As for ``_names_of_release``.
    """
    names = _published_names(local, kind)
    if names is None:
        logger.warning(
            "%s: seems to be a released detector, but the published names of %s are not on this machine and are left "
            "out; name the folder of the names (--vocabulary)",
            path,
            kind,
        )
    elif local is not None and Vocabulary.read(local).names != names:
        logger.warning(
            "%s: seems to be a released detector; its %s get the published names, not those in %s; name the folder of "
            "the names (--vocabulary) if it was trained with others",
            path,
            kind,
            local,
        )
    return names


def _published_names(local: Path | None, kind: str) -> list[str] | None:
    """Returns the names that the original published, from the data set or from an earlier download; None if neither is
    on this machine."""
    remote, md5 = GENOME_VOCABULARIES[f"vocab/{kind}_vocab.txt"]
    for file in (local, place_of(GENOME_LISTS + remote)):
        if file is None or not file.is_file():
            continue
        try:
            content = read_regular(file)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            return Vocabulary.read(file).names
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
