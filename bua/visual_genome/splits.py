"""Reads the lists of images in the splits, or makes them as the original does.

The rules are those of data/genome/create_splits.py of peteanderson80/bottom-up-attention. About half of Visual Genome's
images are images of COCO. Those in Karpathy's splits of COCO get the same split here, so that a detector is not trained
on images that the captions or questions are evaluated on. All others are shuffled. From their end, test and then val
are filled up to their sizes, and the rest belongs to train. At last, each list is shuffled.

The shuffles are those of Python 2 from the random seed 10, and the result is the original's if image_data.json and
Karpathy's lists are the same. The order of the images in image_data.json counts, which depends on its version: the
published lists (``bua.visual_genome.download``) are what to use for Visual Genome itself.
"""

import logging
import random
from pathlib import Path
from typing import TypeVar

from bua.errors import InputError, shown
from bua.io.json_records import column, iter_records, read_records
from bua.visual_genome.records import image_id_of
from bua.visual_genome.sources import text_file, write_lists
from bua.vocabulary import find_lines, read_lines

SPLITS = ("train", "val", "test")
# Number of images of val and of test, and the random seed (data/genome/create_splits.py).
NUM_IMAGES = 5000
SEED = 10
# No image id has more digits, and Python refuses to convert very many.
MAX_DIGITS = 18
# Karpathy's "restval" are images of COCO's val2014 that belong to the original's karpathy_train_images.txt.
_SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}

T = TypeVar("T")

logger = logging.getLogger(__name__)


def read_splits(root: Path) -> dict[str, dict[int, str]]:
    """Returns split -> image id -> the image's path relative to ``root``, in the order of the split file."""
    splits: dict[str, dict[int, str]] = {}
    split_of: dict[int, str] = {}
    for split in SPLITS:
        path = text_file(root, f"splits/{split}.txt")
        splits[split] = {}
        for number, line in enumerate(read_lines(path), start=1):
            file = line.split()[0] if line.strip() else ""
            stem = file.rpartition("/")[2].partition(".")[0]
            if not stem.isdecimal() or len(stem) > MAX_DIGITS:
                raise InputError(
                    f"{path}: line {number} is {line!r:.60}; write lines such as 'VG_100K/1.jpg xml/1.xml'"
                )
            image_id = int(stem)
            if image_id in split_of:
                raise InputError(
                    f"{path}: line {number}: image {image_id} is in {split_of[image_id]} too; remove one of the lines"
                )
            split_of[image_id] = path.name
            splits[split][image_id] = file
        if not splits[split]:
            raise InputError(f"{path}: lists no images; write lines such as 'VG_100K/1.jpg xml/1.xml'")
    return splits


def build_splits(
    root: str | Path,
    num_val: int = NUM_IMAGES,
    num_test: int = NUM_IMAGES,
    coco_splits: str | Path | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Writes splits/{train,val,test}.txt from image_data.json.

    Arguments and errors are those of ``choose_splits``.

    Returns:
        The number of images in each split.
    """
    lists = choose_splits(root, num_val, num_test, coco_splits, progress)
    write_lists(lists)
    return {path.stem: len(lines) for path, lines in lists.items()}


def choose_splits(
    root: str | Path,
    num_val: int = NUM_IMAGES,
    num_test: int = NUM_IMAGES,
    coco_splits: str | Path | None = None,
    progress: bool = True,
) -> dict[Path, list[str]]:
    """Makes the lists of the images of each split from image_data.json, without writing them.

    Args:
        root: The data set's folder, see ``bua.visual_genome.prepare.prepare``.
        num_val, num_test: Number of images of val and of test.
        coco_splits: Karpathy's splits of COCO, see ``read_coco_splits``. Without them, all images are shuffled.
        progress: Whether to show a progress bar.

    Returns:
        The lines of splits/{train,val,test}.txt, by path.

    Raises:
        InputError: A split exists already, a file is damaged, or there are not as many images as requested.
    """
    root = Path(root)
    targets = {split: root / "splits" / f"{split}.txt" for split in SPLITS}
    for target in targets.values():
        if find_lines(target) is not None:
            raise InputError(f"{target}: the file exists already; move it away, or leave out --build-splits to use it")
    sizes = {"val": num_val, "test": num_test}
    for split, size in sizes.items():
        if size < 1:
            raise InputError(f"{targets[split]}: {size} images are requested; give 1 or more")
    split_of_coco = {} if coco_splits is None else read_coco_splits(coco_splits)
    path = root / "image_data.json"
    files, coco_ids = _read_image_data(path, progress)
    if coco_splits is None and any(coco_ids.values()):
        logger.warning(
            "%s: splits of COCO are not given (--coco-splits), so images of COCO's val and test may be in train", path
        )

    splits: dict[str, set[int]] = {split: set() for split in SPLITS}
    remainder: list[int] = []
    for image_id, coco_id in coco_ids.items():
        if coco_id in split_of_coco:
            splits[split_of_coco[coco_id]].add(image_id)
        else:
            remainder.append(image_id)
    for split, size in sizes.items():
        if len(splits[split]) > size:
            raise InputError(
                f"{coco_splits}: puts {len(splits[split])} images of {path} into {split}, which should have {size}; "
                "choose a larger number"
            )
    missing = sum(size - len(splits[split]) for split, size in sizes.items())
    left = len(remainder) - missing
    if left < 0 or left + len(splits["train"]) == 0:
        raise InputError(
            f"{path}: has {len(files)} images, too few for {num_val} in val and {num_test} in test beside those of "
            "train; choose smaller numbers"
        )
    rng = random.Random(SEED)
    shuffle(remainder, rng)
    for split in ("test", "val"):
        while len(splits[split]) < sizes[split]:
            splits[split].add(remainder.pop())
    splits["train"].update(remainder)

    lists = {}
    for split, image_ids in splits.items():
        lines = [file for image_id, file in files.items() if image_id in image_ids]
        shuffle(lines, rng)
        lists[targets[split]] = [f"{line} xml/{Path(line).stem}.xml" for line in lines]
    return lists


def read_coco_splits(path: str | Path) -> dict[int, str]:
    """Reads Karpathy's splits of COCO: COCO's image id -> "train", "val" or "test".

    Args:
        path: Karpathy's dataset_coco.json, or a folder with the original's karpathy_{train,val,test}_images.txt, whose
            lines begin with names such as val2014/COCO_val2014_000000011169.jpg.
    """
    path = Path(path)
    split_of: dict[int, str] = {}
    if path.is_dir():
        for split in SPLITS:
            file = path / f"karpathy_{split}_images.txt"
            for number, line in enumerate(read_lines(file), start=1):
                number_in_name = line.partition(".")[0].rpartition("_")[2]
                if not number_in_name.isdecimal() or len(number_in_name) > MAX_DIGITS:
                    raise InputError(
                        f"{file}: line {number} is {shown(line)}; write lines such as COCO_val2014_000000011169.jpg"
                    )
                split_of.setdefault(int(number_in_name), split)
        return split_of
    name, records = read_records(path, "images")
    for coco_id, karpathy in zip(column(name, records, "cocoid", int), column(name, records, "split", str)):
        if karpathy not in _SPLIT_OF:
            raise InputError(f"{name}: a split is {shown(karpathy)}; it must be one of {', '.join(_SPLIT_OF)}")
        split_of.setdefault(coco_id, _SPLIT_OF[karpathy])
    return split_of


def shuffle(items: list[T], rng: random.Random) -> None:
    """Shuffles a list in place as ``random.shuffle`` of Python 2 does. That of Python 3 draws other numbers."""
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def _read_image_data(path: Path, progress: bool) -> tuple[dict[int, str], dict[int, int | None]]:
    """Returns image id -> the image's path such as VG_100K/1.jpg, and image id -> id in COCO, or None."""
    files: dict[int, str] = {}
    coco_ids: dict[int, int | None] = {}
    for record in iter_records(path, progress):
        image_id = image_id_of(record, path)
        url, coco_id = record.get("url"), record.get("coco_id") or None
        parts = url.split("/")[-2:] if isinstance(url, str) else []
        if len(parts) < 2 or parts[1].partition(".")[0] != str(image_id) or len("/".join(parts).split()) != 1:
            raise InputError(
                f"{path}: image {image_id}: its url is {shown(url)}; it must end as in VG_100K/{image_id}.jpg"
            )
        if coco_id is not None and type(coco_id) is not int:
            raise InputError(f"{path}: image {image_id}: coco_id is {shown(coco_id)}; it must be an integer or null")
        if image_id in files:
            raise InputError(f"{path}: image {image_id} occurs twice; download the file again")
        files[image_id], coco_ids[image_id] = "/".join(parts), coco_id
    return files, coco_ids
