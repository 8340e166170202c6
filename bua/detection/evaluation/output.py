"""Keeps the detections of an evaluation: names its folder, and writes files in COCO's results format."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.io.files import whole_file

# Significant digits of the numbers in a file. Nine identify a float32.
DIGITS = 9
# Characters of a checkpoint's or a data set's name that are kept, of the 255 that a file system allows.
LONGEST_NAME = 200


def evaluation_folder(output_dir: str | Path, dataset: str, checkpoint: str) -> Path:
    """Returns the folder for the files of an evaluation, ``<output_dir>/evaluation/<data set>/<checkpoint>``.

    Args:
        dataset: Name of the data set, as in ``DATASETS.TEST``. If it is the path of a file, the folder has the name of
            the file and eight characters that differ for another path.
        checkpoint: Name of the checkpoint, as ``checkpoint_label`` returns it.
    """
    name = dataset.replace("/", "_")
    if dataset.endswith(".json") or not name.strip("."):
        name = _with_digest(Path(dataset), Path(dataset).stem)
    return Path(output_dir) / "evaluation" / name / checkpoint


def checkpoint_label(weights: str, output_dir: str | Path) -> str:
    """Returns the name of a checkpoint's folder, which no other checkpoint has.

    This is the file's name without .pth. If the file is not in ``output_dir``, eight characters follow, which differ
    for a file in another place.

    Args:
        weights: Path, name or address of the weights, as in ``MODEL.WEIGHTS``.
        output_dir: Folder of the run, whose checkpoints have different names.
    """
    path = Path(weights)
    name = path.name.removesuffix(".pth")
    # A name of dots alone, as of a file ...pth, would be a folder above.
    if path.resolve().parent == Path(output_dir).resolve() and name.strip("."):
        return name
    return _with_digest(weights if "://" in weights else path, name)


def write_results(
    path: Path, images: Iterable[tuple[int, np.ndarray]], category_ids: Sequence[int] | None = None
) -> None:
    """Writes detections in COCO's results format, which ``pycocotools.coco.COCO.loadRes`` reads.

    The file is a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``. Only the detections
    of one image at a time are converted. An older file is replaced when the new one is complete.

    Args:
        path: The file.
        images: The id of each image and its detections [n, 6]: class, score, x1, y1, x2, y2 in pixels.
        category_ids: The ``category_id`` of each class. By default this is the class.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with whole_file(path) as file:
            file.write(b"[")
            separator = b"\n"
            for image_id, rows in images:
                if len(rows):
                    # Without the brackets of the list. Each image has a line of its own.
                    file.write(separator + orjson.dumps(_records(image_id, rows, category_ids))[1:-1])
                    separator = b",\n"
            file.write(b"\n]\n")
    except OSError as error:
        raise InputError(
            f"{path}: the detections cannot be written: {error.strerror}; free some space or choose another folder, or "
            "set MODEL.BUA.EVALUATION.KEEP_DETECTIONS to False"
        ) from error


def _records(image_id: int, rows: np.ndarray, category_ids: Sequence[int] | None) -> list[dict]:
    classes = rows[:, 0].astype(np.int64).tolist()
    if category_ids is not None:
        classes = [category_ids[number] for number in classes]
    numbers = rows[:, 1:].astype(np.float64)
    numbers[:, 3:] -= numbers[:, 1:3]
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, (score, *box) in zip(classes, _rounded(numbers).tolist())
    ]


def _rounded(values: np.ndarray) -> np.ndarray:
    """Rounds numbers to ``DIGITS`` significant digits, so that they are short as text."""
    magnitude = np.floor(np.log10(np.abs(values), out=np.zeros_like(values), where=values != 0))
    scale = 10.0 ** (DIGITS - 1 - magnitude)
    return np.rint(values * scale) / scale


def _with_digest(place: str | Path, name: str) -> str:
    """Returns a name that can be a file's, followed by characters that stand for its place, a path or an address."""
    where = str(place.resolve()) if isinstance(place, Path) else place
    digest = hashlib.sha256(where.encode(errors="surrogateescape")).hexdigest()[:8]
    safe = re.sub(r"[^-.\w]", "_", name, flags=re.ASCII)
    return f"{safe:.{LONGEST_NAME}}-{digest}"
