import gzip
import itertools
import json
import random
import re

import pytest

from bua.errors import InputError
from bua.visual_genome.splits import SEED, SPLITS, build_splits, read_coco_splits, shuffle

# What data/genome/create_splits.py of peteanderson80/bottom-up-attention wrote for ``images()`` and ``KARPATHY`` under
# Python 2.7, with 4 images instead of 5,000 in val and in test.
ORIGINAL = {
    "train": [6, 19, 5, 14, 20, 2, 4, 16, 11, 18, 15, 8],
    "val": [12, 1, 17, 7],
    "test": [10, 3, 9, 13],
}
KARPATHY = {"train": [1018, 1006], "val": [1012], "test": [1003, 9999]}


def images():
    """Twenty images, of which six are images of COCO; four of these are in ``KARPATHY``."""
    return [
        {
            "image_id": n,
            "url": f"https://cs.stanford.edu/people/rak248/VG_100K{'_2' if n % 2 else ''}/{n}.jpg",
            "coco_id": 1000 + n if n % 3 == 0 else None,
        }
        for n in range(20, 0, -1)
    ]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "image_data.json").write_text(json.dumps(images()))
    return tmp_path


def write_lists(folder):
    folder.mkdir()
    for split, ids in KARPATHY.items():
        lines = [f"val2014/COCO_val2014_{n:012d}.jpg {n}\n" for n in ids]
        (folder / f"karpathy_{split}_images.txt").write_text("".join(lines))
    return folder


def write_karpathys_json(path):
    names = {"train": "restval"}
    records = [{"cocoid": n, "split": names.get(split, split)} for split, ids in KARPATHY.items() for n in ids]
    path.write_text(json.dumps({"images": records}))
    return path


def listed(root):
    lines = {split: (root / "splits" / f"{split}.txt").read_text().splitlines() for split in SPLITS}
    for line in itertools.chain.from_iterable(lines.values()):
        assert re.fullmatch(r"VG_100K(_2)?/(\d+)\.jpg xml/\2\.xml", line)
    return {split: [int(re.search(r"\d+(?=\.xml)", line)[0]) for line in found] for split, found in lines.items()}


@pytest.mark.parametrize("source", ["lists", "json"])
def test_splits_are_the_originals(root, source, caplog):
    coco = write_lists(root / "coco") if source == "lists" else write_karpathys_json(root / "dataset_coco.json")
    assert build_splits(root, 4, 4, coco, progress=False) == {"train": 12, "val": 4, "test": 4}
    assert listed(root) == ORIGINAL
    assert (root / "splits/val.txt").read_text().startswith("VG_100K/12.jpg xml/12.xml\nVG_100K_2/1.jpg xml/1.xml\n")
    assert not caplog.records


def test_without_cocos_splits_all_images_are_shuffled(root, caplog):
    build_splits(root, 3, 2, progress=False)
    found = listed(root)
    assert {split: len(ids) for split, ids in found.items()} == {"train": 15, "val": 3, "test": 2}
    assert sorted(itertools.chain.from_iterable(found.values())) == list(range(1, 21))
    assert "images of COCO's val and test may be in train" in caplog.text


def test_published_lists_are_shuffled_as_here(shared_data):
    """The published lists, put back into the order before their shuffle, follow image_data.json, where most images have
    a smaller id than the one before them."""
    lists = {}
    for split in SPLITS:
        with gzip.open(shared_data / "visual_genome" / f"{split}.txt.gz", "rt") as file:
            lists[split] = [int(line.split("/")[1].split(".")[0]) for line in file]
    rng = random.Random(SEED)
    # The shuffles of the 56,579 images that are not in Karpathy's splits, and of train, draw as many numbers.
    for _ in range(56_579 - 1 + len(lists["train"]) - 1):
        rng.random()
    for split in ("val", "test"):
        order = list(range(len(lists[split])))
        shuffle(order, rng)
        before = [image_id for _, image_id in sorted(zip(order, lists[split]))]
        assert sum(b < a for a, b in itertools.pairwise(before)) > 0.85 * len(before)


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        ((10, 10), {}, r"image_data\.json: has 20 images, too few for 10 in val and 10 in test"),
        ((5000, 5000), {}, r"too few for 5000 in val"),
        ((0, 4), {}, r"val\.txt: 0 images are requested; give 1 or more"),
        ((4, 4), {"url": "1.jpg"}, r"image 20: its url is '1\.jpg'; it must end as in VG_100K/20\.jpg"),
        ((4, 4), {"url": "a/VG_100K/19.jpg"}, "image 20: its url is"),
        ((4, 4), {"url": None}, "image 20: its url is None"),
        ((4, 4), {"coco_id": "7"}, "image 20: coco_id is '7'; it must be an integer or null"),
        ((4, 4), {"image_id": None}, "an image has no 'image_id'"),
        ((4, 4), {"image_id": 19, "url": "a/VG_100K/19.jpg"}, "image 19 occurs twice"),
    ],
)
def test_images_that_cannot_be_split(root, sizes, change, message):
    records = images()
    records[0] |= change
    (root / "image_data.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=message):
        build_splits(root, *sizes, progress=False)
    assert not (root / "splits").exists()


def test_splits_that_cannot_be_built(root):
    coco = write_lists(root / "coco")
    (coco / "karpathy_test_images.txt").write_text("COCO_val2014_000000001003.jpg\nCOCO_val2014_000000001009.jpg\n")
    with pytest.raises(InputError, match=r"puts 2 images of .*image_data\.json into test, which should have 1"):
        build_splits(root, 4, 1, coco, progress=False)
    (root / "splits").mkdir()
    (root / "splits" / "test.txt.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"test\.txt: the file exists already; move it away"):
        build_splits(root, 4, 4, progress=False)


def test_lists_of_coco_that_are_damaged(tmp_path):
    coco = write_lists(tmp_path / "coco")
    assert read_coco_splits(coco) == {n: split for split, ids in KARPATHY.items() for n in ids}
    (coco / "karpathy_val_images.txt").write_text("COCO_val2014_000000001012.jpg\nnothing\n")
    with pytest.raises(InputError, match=r"karpathy_val_images\.txt: line 2 is 'nothing'; write lines such as"):
        read_coco_splits(coco)
    (tmp_path / "x.json").write_text('{"images": [{"cocoid": 1, "split": "dev"}]}')
    with pytest.raises(InputError, match=r"x\.json: a split is 'dev'; it must be one of train, restval"):
        read_coco_splits(tmp_path / "x.json")
