"""Prepares Visual Genome as a detection data set: makes annotation files from JSON files, vocabularies and splits."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.download.catalog import GENOME_IMAGES, GENOME_JSON
from bua.errors import InputError
from bua.io.json_records import without_gc
from bua.visual_genome.official import count_names, read_attributes, read_objects, read_sizes
from bua.vocabulary import Vocabulary, read_lines

SPLITS = ("train", "val", "test")
# No image id has more digits, and Python refuses to convert very many.
MAX_DIGITS = 18

logger = logging.getLogger(__name__)


@dataclass
class SplitSummary:
    """Numbers of images, boxes and attributes in a prepared split.

    Attributes:
        annotation_file: The file that was written.
        listed: Number of images in the split file.
        images: Number of these images that have at least one object. Only they are in the annotation file.
        boxes, attributes: Number of boxes and of attributes in the annotation file.
        replaced: Number of boxes that lay outside their image and were replaced by the whole image.
    """

    annotation_file: Path
    listed: int
    images: int
    boxes: int
    attributes: int
    replaced: int


@without_gc()
def prepare(root: str | Path, name: str = "visual_genome", progress: bool = True) -> dict[str, SplitSummary]:
    """Writes ``annotations/<name>_{train,val,test}.json`` from the files in ``root``.

    Args:
        root: The data set's folder, which datasets/README.md describes. It has image_data.json, attributes.json, and
            scene_graphs.json or objects.json of Visual Genome 1.2 or 1.4; if both are there, scene_graphs.json is read,
            as in the original. It also has vocab/{objects,attributes}_vocab.txt and splits/{train,val,test}.txt, each
            of which may be compressed to .txt.gz.
        name: First part of the data sets' names.
        progress: Whether to show progress bars.

    Returns:
        A summary of each split.

    Raises:
        InputError: A file is missing, truncated or has another format.
    """
    root = Path(root)
    if Path(name).name != name:
        raise InputError(f"name {name!r}: the name becomes part of file names; choose one without /")
    sources = _Sources.find(root)
    objects = Vocabulary.read(_text_file(root, "vocab/objects_vocab.txt"))
    attributes = Vocabulary.read(_text_file(root, "vocab/attributes_vocab.txt"))
    splits = _read_splits(root)
    file_names = {image_id: file for files in splits.values() for image_id, file in files.items()}
    _warn_of_missing_images(root, file_names)

    sizes = read_sizes(sources.image_data, progress)
    attributes_of = read_attributes(sources.attributes, attributes, progress)
    found: dict[int, ImageAnnotations] = {}
    outside: dict[int, int] = {}
    for image, count in read_objects(sources.objects, file_names, sizes, attributes_of, objects, attributes, progress):
        if image.classes:
            found[image.image_id] = image
            outside[image.image_id] = count

    images_of = {split: [found[image_id] for image_id in files if image_id in found] for split, files in splits.items()}
    for split, images in images_of.items():
        if not images:
            raise InputError(
                f"{sources.objects}: no image of splits/{split}.txt has an object of vocab/objects_vocab.txt;"
                " use files of one data set"
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
    """Writes vocab/{objects,attributes}_vocab.txt with the most frequent names in all images.

    The most frequent name comes first; names with the same frequency are in alphabetical order. Names are cleaned as in
    ``prepare``. All attributes of a box count, while the original counts only the first one of an entry.

    Args:
        root: The data set's folder, see ``prepare``.
        num_objects, num_attributes: Number of names in each vocabulary.
        progress: Whether to show progress bars.

    Raises:
        InputError: A vocabulary exists already, or the files have fewer names.
    """
    root = Path(root)
    targets = [root / "vocab" / f"{kind}_vocab.txt" for kind in ("objects", "attributes")]
    for target in targets:
        if target.exists() or target.with_name(target.name + ".gz").exists():
            raise InputError(f"{target}: the file exists already; move it away to build a new one")
    sources = _Sources.find(root)
    for target, counts, size in zip(
        targets, count_names(sources.objects, sources.attributes, progress), (num_objects, num_attributes)
    ):
        # In a vocabulary file, a name with a comma would be read as two aliases.
        ranked = sorted((-count, name) for name, count in counts.items() if name and "," not in name)
        if not 0 < size <= len(ranked):
            raise InputError(
                f"{target}: {size} names are requested, but {root} has {len(ranked)}; choose 1 to {len(ranked)}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        Vocabulary(name for _, name in ranked[:size]).write(part)
        os.replace(part, target)


@dataclass
class _Sources:
    """Paths of Visual Genome's JSON files in a folder."""

    image_data: Path
    attributes: Path
    objects: Path

    @classmethod
    def find(cls, root: Path) -> "_Sources":
        """Returns the files in ``root``. Raises an error that says what to download if one is missing."""
        scene_graphs, objects = root / "scene_graphs.json", root / "objects.json"
        if objects.is_file() and not scene_graphs.is_file():
            sources = cls(root / "image_data.json", root / "attributes.json", objects)
        else:
            sources = cls(root / "image_data.json", root / "attributes.json", scene_graphs)
        missing = [path.name for path in vars(sources).values() if not path.is_file()]
        if missing:
            zips = ", ".join(f"{GENOME_JSON}{file}.zip" for file in missing)
            raise InputError(
                f"{root}: has no {', '.join(missing)}; download {zips} and unzip there (and the images,"
                f" {GENOME_IMAGES}images.zip and {GENOME_IMAGES}images2.zip), as `bua download visual-genome` does"
            )
        return sources


def _read_splits(root: Path) -> dict[str, dict[int, str]]:
    """Returns split -> image id -> the image's path relative to ``root``, in the order of the split file."""
    splits: dict[str, dict[int, str]] = {}
    split_of: dict[int, str] = {}
    for split in SPLITS:
        path = _text_file(root, f"splits/{split}.txt")
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


def _text_file(root: Path, relative: str) -> Path:
    """Returns the path of a text file in ``root``, which may have the suffix .gz."""
    plain, packed = root / relative, root / f"{relative}.gz"
    if not plain.is_file() and not packed.is_file():
        raise InputError(f"{plain}: no such file; datasets/README.md says where to get it")
    return plain if plain.is_file() else packed


def _warn_of_missing_images(root: Path, file_names: dict[int, str]) -> None:
    for folder in sorted({os.path.dirname(file) for file in file_names.values()}):
        if not os.path.isdir(root / folder):
            logger.warning(
                "%s: no such folder; download the images, %simages.zip and images2.zip, as `bua download "
                "visual-genome --only images` does",
                root / folder,
                GENOME_IMAGES,
            )
