"""Visual Genome as a detection data set: its official JSON files, vocabularies and splits -> annotation files."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bua.detection.annotations import DetectionDataset, write_annotations
from bua.errors import InputError
from bua.io.json_records import without_gc
from bua.visual_genome.official import count_names, read_attributes, read_objects, read_sizes
from bua.vocabulary import Vocabulary, read_lines

__all__ = ["DetectionDataset", "SplitSummary", "build_vocabularies", "prepare"]

SPLITS = ("train", "val", "test")
JSON_URL = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/"
IMAGES_URL = "https://cs.stanford.edu/people/rak248/VG_100K_2/"

logger = logging.getLogger(__name__)


@dataclass
class SplitSummary:
    """What a split holds.

    Attributes:
        annotation_file: where it was written.
        listed: images in the split file.
        images: those of them with at least one object.
        boxes, attributes: on these images.
        replaced: boxes that lay outside of their image and became the whole of it.
    """

    annotation_file: Path
    listed: int
    images: int
    boxes: int
    attributes: int
    replaced: int


@without_gc()
def prepare(root: str | Path, name: str = "visual_genome", progress: bool = True) -> dict[str, SplitSummary]:
    """Writes ``annotations/<name>_{train,val,test}.json`` from what lies in ``root``.

    Args:
        root: a folder with image_data.json, attributes.json, scene_graphs.json or objects.json (the first, as in the
            original, where both are there; Visual Genome 1.2 or 1.4), vocab/{objects,attributes}_vocab.txt and
            splits/{train,val,test}.txt (the texts may end in .gz). datasets/README.md shows it.
        name: what the data sets are called.
        progress: whether to show progress bars.

    Returns:
        what was written, by split.

    Raises:
        InputError: a file is missing, truncated or of another format.
    """
    root = Path(root)
    if Path(name).name != name:
        raise InputError(f"name {name!r}: becomes part of file names and must have no / in it")
    sources = _Sources.find(root)
    objects = Vocabulary.read(_text_file(root, "vocab/objects_vocab.txt"))
    attributes = Vocabulary.read(_text_file(root, "vocab/attributes_vocab.txt"))
    splits = _read_splits(root)
    file_names = {image_id: file for files in splits.values() for image_id, file in files.items()}
    _warn_of_missing_images(root, file_names)

    sizes = read_sizes(sources.image_data, progress)
    attributes_of = read_attributes(sources.attributes, attributes, progress)
    found = {}
    outside = {}
    for image, count in read_objects(sources.objects, file_names, sizes, attributes_of, objects, attributes, progress):
        if image.classes:
            found[image.image_id] = image
            outside[image.image_id] = count

    images_of = {split: [found[image_id] for image_id in files if image_id in found] for split, files in splits.items()}
    for split, images in images_of.items():
        if not images:
            raise InputError(
                f"{sources.objects}: no image of splits/{split}.txt has an object of vocab/objects_vocab.txt;"
                f" use files that belong together"
            )
    summaries = {}
    for split, images in images_of.items():
        annotation_file = root / "annotations" / f"{name}_{split}.json"
        bar = tqdm(images, annotation_file.name, unit="image", disable=not progress)
        write_annotations(annotation_file, bar, objects, attributes)
        summaries[split] = SplitSummary(
            annotation_file,
            listed=len(splits[split]),
            images=len(images),
            boxes=sum(len(image.classes) for image in images),
            attributes=sum(len(ids) for image in images for ids in image.attributes),
            replaced=sum(outside[image.image_id] for image in images),
        )
    return summaries


def build_vocabularies(root: str | Path, num_objects: int, num_attributes: int, progress: bool = True) -> None:
    """Writes vocab/{objects,attributes}_vocab.txt: the most frequent names of all images, the most frequent first.

    Names are cleaned as in ``prepare``; of two as frequent ones the first in the alphabet wins. All attributes of a
    box count (in the original, the first of an entry only).

    Raises:
        InputError: a vocabulary is there already, or the files have fewer names.
    """
    root = Path(root)
    targets = [root / "vocab" / f"{kind}_vocab.txt" for kind in ("objects", "attributes")]
    for target in targets:
        if target.exists() or target.with_name(target.name + ".gz").exists():
            raise InputError(f"{target}: there already; move it away to build a new one")
    sources = _Sources.find(root)
    for target, counts, size in zip(
        targets, count_names(sources.objects, sources.attributes, progress), (num_objects, num_attributes)
    ):
        # A comma would make two aliases of one name.
        ranked = sorted((-count, name) for name, count in counts.items() if name and "," not in name)
        if not 0 < size <= len(ranked):
            raise InputError(f"{target}: {size} names wanted; {root} has {len(ranked)}, choose 1 to {len(ranked)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        Vocabulary(name for _, name in ranked[:size]).write(part)
        os.replace(part, target)


@dataclass
class _Sources:
    """The official files in a folder."""

    image_data: Path
    attributes: Path
    objects: Path

    @classmethod
    def find(cls, root: Path) -> "_Sources":
        scene_graphs, objects = root / "scene_graphs.json", root / "objects.json"
        if objects.is_file() and not scene_graphs.is_file():
            sources = cls(root / "image_data.json", root / "attributes.json", objects)
        else:
            sources = cls(root / "image_data.json", root / "attributes.json", scene_graphs)
        missing = [path.name for path in vars(sources).values() if not path.is_file()]
        if missing:
            zips = ", ".join(f"{JSON_URL}{file}.zip" for file in missing)
            raise InputError(
                f"{root}: no {', '.join(missing)}; download {zips} and unzip there"
                f" (and the images, {IMAGES_URL}images.zip and {IMAGES_URL}images2.zip; see datasets/README.md)"
            )
        return sources


def _read_splits(root: Path) -> dict[str, dict[int, str]]:
    """Split -> image id -> the image's path beneath ``root``, in the order of the split file."""
    splits: dict[str, dict[int, str]] = {}
    split_of: dict[int, str] = {}
    for split in SPLITS:
        path = _text_file(root, f"splits/{split}.txt")
        splits[split] = {}
        for number, line in enumerate(read_lines(path), start=1):
            file = line.split()[0] if line.strip() else ""
            stem = file.rpartition("/")[2].partition(".")[0]
            if not stem.isdecimal():
                raise InputError(f"{path}: line {number} is {line!r}; it must be like 'VG_100K/1.jpg xml/1.xml'")
            image_id = int(stem)
            if image_id in split_of:
                raise InputError(f"{path}: line {number}: image {image_id} is in {split_of[image_id]} too; remove one")
            split_of[image_id] = path.name
            splits[split][image_id] = file
        if not splits[split]:
            raise InputError(f"{path}: lists no images; it must have lines like 'VG_100K/1.jpg xml/1.xml'")
    return splits


def _text_file(root: Path, relative: str) -> Path:
    """The file, or the same with .gz."""
    plain, packed = root / relative, root / f"{relative}.gz"
    if not plain.is_file() and not packed.is_file():
        raise InputError(f"{plain}: no such file; datasets/README.md says where to get it")
    return plain if plain.is_file() else packed


def _warn_of_missing_images(root: Path, file_names: dict[int, str]) -> None:
    for folder in sorted({os.path.dirname(file) for file in file_names.values()}):
        if not (root / folder).is_dir():
            logger.warning(
                "%s: no such folder; the images are in %simages.zip and images2.zip", root / folder, IMAGES_URL
            )
