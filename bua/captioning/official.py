"""Reads captions from Karpathy's JSON, from COCO's files with a list of images per split, and from the region phrases
of Visual Genome."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.errors import InputError, first_of, shown
from bua.features.ids import image_id_of
from bua.io.json_records import column, iter_records, read_records, without_gc
from bua.vocabulary import read_lines

# Karpathy's "restval" are the images of COCO's val2014 that are not in his val and test. They are used for training.
SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}
# Number of an image's phrases that the GRU variant makes a caption of.
PHRASES = 3

logger = logging.getLogger(__name__)


@dataclass
class Captions:
    """The captions of a split's images.

    Attributes:
        name: Path of the file, for messages.
        image_ids: [N] int64, all different.
        texts: For each image its captions, at least one, as people wrote them.
        tokens: For each image Karpathy's tokens of its captions, with blanks between the tokens; None where the file
            has no tokens.
    """

    name: str
    image_ids: np.ndarray
    texts: list[list[str]]
    tokens: list[list[str]] | None = None


def load_karpathy(path: str | Path) -> dict[str, Captions]:
    """Reads ``dataset_coco.json``, or ``dataset_flickr30k.json``.

    Returns:
        The captions by split: "train", which includes "restval", "val" and "test", those that the file has.

    Raises:
        InputError: The file cannot be read or is of another kind, a split is unknown, or an image occurs twice or has
            no captions. The message names the file, the record and the field.
    """
    name, records = read_records(str(path), "images")
    found: dict[str, list[tuple]] = defaultdict(list)
    with without_gc():
        splits = column(name, records, "split", str)
        for number, (record, split, sentences) in enumerate(
            zip(records, splits, column(name, records, "sentences", list))
        ):
            if split not in SPLIT_OF:
                raise InputError(
                    f"{name}: record {number}: split is {split!r}; it must be one of {', '.join(SPLIT_OF)}"
                )
            try:
                texts = [str(sentence["raw"]) for sentence in sentences]
                tokens = [" ".join(sentence["tokens"]) for sentence in sentences]
                image_id = record["cocoid"] if "cocoid" in record else image_id_of(record["filename"])
            except (TypeError, KeyError) as error:
                raise InputError(
                    f"{name}: record {number}: must have sentences with raw and tokens, and cocoid or filename "
                    f"({error}); download the file again"
                ) from error
            if type(image_id) is not int or abs(image_id) >= 2**63:
                raise InputError(
                    f"{name}: record {number}: the image's id is {shown(image_id)}; it must be an integer of 64 bits"
                )
            found[SPLIT_OF[split]].append((image_id, texts, tokens))
    captions = {}
    for split, items in found.items():
        ids, all_texts, all_tokens = zip(*items)
        captions[split] = Captions(name, np.array(ids, np.int64), list(all_texts), list(all_tokens))
    check_once(name, (image_id for part in captions.values() for image_id in part.image_ids.tolist()))
    return _checked(name, captions)


def load_coco(paths: Sequence[str | Path], splits: Mapping[str, str | Path]) -> dict[str, Captions]:
    """Reads official caption files of COCO.

    Args:
        paths: Such as ``captions_train2014.json`` and ``captions_val2014.json``.
        splits: By split the file that lists its images, see ``read_image_list``. The captions of an image may be in any
            of the files.

    Returns:
        The captions by split.

    Raises:
        InputError: A file is damaged, or an image is in two splits or has no captions.
    """
    captions_of: dict[int, list[str]] = {}
    for path in paths:
        captions_of |= load_references(path)
    name = " + ".join(map(str, paths))
    lists = _read_image_lists(splits)
    return _checked(name, {split: _chosen(name, ids, captions_of) for split, ids in lists.items()})


def load_region_phrases(
    path: str | Path, splits: Mapping[str, str | Path], *, phrases: int = PHRASES, progress: bool = True
) -> dict[str, Captions]:
    """Reads Visual Genome's ``region_descriptions.json`` as the GRU variant does (data/make_dict.py): the caption of an
    image is its first phrases, joined by commas. Images without phrases are left out.

    Args:
        splits: As for ``load_coco``, such as the original's ``splits/train.txt``.
        phrases: Number of phrases that make a caption.
        progress: Whether to show a progress bar.

    Returns:
        The captions by split.
    """
    lists = _read_image_lists(splits)
    listed = {image_id for ids in lists.values() for image_id in ids}
    captions_of = {}
    for record in iter_records(path, progress):
        image_id = record.get("image_id", record.get("id"))
        if type(image_id) is int and image_id in listed:
            try:
                texts = [str(region["phrase"]).strip() for region in record["regions"][:phrases]]
            except (TypeError, KeyError) as error:
                raise InputError(
                    f"{path}: image {image_id}: its regions must have phrases ({error}); download the file again"
                ) from error
            if texts:
                captions_of[image_id] = [", ".join(texts)]
    captions = {}
    for split, ids in lists.items():
        there = [image_id for image_id in ids if image_id in captions_of]
        if len(there) < len(ids):
            logger.warning(
                "%s: %d of %d images have no regions; they are left out", splits[split], len(ids) - len(there), len(ids)
            )
        captions[split] = _chosen(str(path), there, captions_of)
    return _checked(str(path), captions)


def read_image_list(path: str | Path) -> list[int]:
    """Reads the ids of the images of a split.

    A line is as in Karpathy's lists ("val2014/COCO_val2014_000000391895.jpg 391895"), as in Visual Genome's
    ("VG_100K/2.jpg xml/2.xml"), or an id.

    Raises:
        InputError: A line is of another kind, an image occurs twice, or there are no images.
    """
    ids: dict[int, None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        image_id = int(fields[-1]) if fields[-1].isdecimal() and len(fields[-1]) < 19 else image_id_of(fields[0])
        if type(image_id) is not int or abs(image_id) >= 2**63:
            raise InputError(
                f"{path}: line {number} is {line!r:.60}; it must end with an image's id, or begin with its file name"
            )
        if image_id in ids:
            raise InputError(f"{path}: line {number}: image {image_id} is listed twice; remove one line")
        ids[image_id] = None
    if not ids:
        raise InputError(f"{path}: lists no images; name a file with one image per line")
    return list(ids)


def load_references(source: str | Path | dict | list) -> dict[int, list[str]]:
    """Reads captions in COCO's format.

    Args:
        source: Path of the file, its content, or the list of annotations in it.

    Returns:
        The captions of each image by image id.

    Raises:
        InputError: The file is of another kind; the message names the file, the record and the field.
    """
    name, records = read_records(source, "annotations")
    captions: dict[int, list[str]] = {}
    with without_gc():
        for image_id, text in zip(column(name, records, "image_id", int), column(name, records, "caption", str)):
            captions.setdefault(image_id, []).append(text)
    return captions


def load_results(source: str | Path | list) -> dict[int, str]:
    """Reads one caption per image in the format of COCO's server: a list of ``{"image_id", "caption"}``.

    Returns:
        The captions by image id.

    Raises:
        InputError: As for ``load_references``; or an image occurs twice.
    """
    name, records = read_records(source, None)
    ids = column(name, records, "image_id", int)
    check_once(name, ids)
    return dict(zip(ids, column(name, records, "caption", str)))


def check_once(name: str, ids: Iterable[int]) -> None:
    """Checks that no image id occurs more than once.

    Raises:
        InputError: Some ids occur more than once. The message has their number and the first of them.
    """
    different, counts = np.unique(np.array(list(ids), np.int64), return_counts=True)
    doubled = different[counts > 1].tolist()
    if doubled:
        raise InputError(f"{name}: has {len(doubled)} images more than once: {first_of(doubled)}; keep one of each")


def _read_image_lists(paths: Mapping[str, str | Path]) -> dict[str, list[int]]:
    lists = {split: read_image_list(path) for split, path in paths.items()}
    check_once(" + ".join(map(str, paths.values())), (image_id for ids in lists.values() for image_id in ids))
    return lists


def _chosen(name: str, ids: list[int], captions_of: Mapping[int, list[str]]) -> Captions:
    return Captions(name, np.array(ids, np.int64), [captions_of.get(image_id, []) for image_id in ids])


def _checked(name: str, captions: dict[str, Captions]) -> dict[str, Captions]:
    for split, part in captions.items():
        missing = [image_id for image_id, texts in zip(part.image_ids.tolist(), part.texts) if not texts]
        if missing:
            raise InputError(
                f"{name}: has no captions for {len(missing)} of the {len(part.texts)} images of {split}: "
                f"{first_of(missing)}; name all files that have them, or leave the images out"
            )
    return captions
