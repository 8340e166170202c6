"""Prepares Visual Genome as a detection data set: makes annotation files from JSON files, vocabularies and splits."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.download.catalog import GENOME_IMAGES
from bua.errors import InputError
from bua.io.json_records import without_gc
from bua.visual_genome.official import read_attributes, read_objects, read_sizes
from bua.visual_genome.relations import RelationFinder, Triple, read_relationships
from bua.visual_genome.sources import Sources, text_file
from bua.visual_genome.splits import read_splits
from bua.visual_genome.zero_rows import ZeroRowCounter
from bua.vocabulary import Vocabulary, find_lines

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
        relations: Number of relations in the annotation file.
    """

    annotation_file: Path
    listed: int
    images: int
    boxes: int
    attributes: int
    replaced: int
    relations: int


@without_gc()
def prepare(root: str | Path, name: str = "visual_genome", progress: bool = True) -> dict[str, SplitSummary]:
    """Writes ``annotations/<name>_{train,val,test}.json`` from the files in ``root``.

    Args:
        root: The data set's folder, which datasets/README.md describes. It has image_data.json, attributes.json, and
            scene_graphs.json or objects.json of Visual Genome 1.2 or 1.4; if both are there, scene_graphs.json is read,
            as in the original. It also has vocab/{objects,attributes}_vocab.txt and splits/{train,val,test}.txt, each
            of which may be compressed to .txt.gz. If it has vocab/relations_vocab.txt, the annotation files get
            relations, which are read from scene_graphs.json or relationships.json.
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
    sources = Sources.find(root)
    objects = Vocabulary.read(text_file(root, "vocab/objects_vocab.txt"))
    attributes = Vocabulary.read(text_file(root, "vocab/attributes_vocab.txt"))
    relations = _relation_vocabulary(root, sources)
    splits = read_splits(root)
    file_names = {image_id: file for files in splits.values() for image_id, file in files.items()}
    _warn_of_missing_images(root, file_names)

    sizes = read_sizes(sources.image_data, progress)
    attributes_of = read_attributes(sources.attributes, attributes, progress)
    found: dict[int, ImageAnnotations] = {}
    outside: dict[int, int] = {}
    counter = ZeroRowCounter()
    find_relations = _relation_finder(sources, relations, file_names, progress) if relations else None
    for image, count in read_objects(
        sources.objects, file_names, sizes, attributes_of, objects, attributes, progress, counter.add, find_relations
    ):
        if image.classes:
            found[image.image_id] = image
            outside[image.image_id] = count
    zero_rows = counter.numbers(objects)
    for image in found.values():
        image.zero_rows = zero_rows[image.image_id]

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
        write_annotations(annotation_file, bar, objects, attributes, relations)
        summaries[split] = SplitSummary(
            annotation_file,
            listed=len(splits[split]),
            images=len(images),
            boxes=sum(len(image.classes) for image in images),
            attributes=sum(len(ids) for image in images for ids in image.attributes),
            replaced=sum(outside[image.image_id] for image in images),
            relations=sum(len(image.relations) for image in images),
        )
    return summaries


def _relation_vocabulary(root: Path, sources: Sources) -> Vocabulary | None:
    """Returns the vocabulary of relations, or None if it or the file with the relationships is missing."""
    path = root / "vocab" / "relations_vocab.txt"
    found = find_lines(path)
    if found is None:
        logger.info("%s: no such file, so the annotations get no relations", path)
        return None
    if sources.relationships is None:
        logger.warning("%s: has no relationships.json, so the annotations get no relations", root)
        return None
    return Vocabulary.read(found)


def _relation_finder(
    sources: Sources, relations: Vocabulary, file_names: Mapping[int, str], progress: bool
) -> Callable[[int, dict], Iterable[Triple]]:
    """Returns what ``read_objects`` finds the relations of an image with."""
    if sources.relationships == sources.objects:
        find = RelationFinder(relations)
        return lambda _, image: find(image)
    assert sources.relationships is not None
    relations_of = read_relationships(sources.relationships, file_names, relations, progress)
    return lambda image_id, _: relations_of.get(image_id, ())


def _warn_of_missing_images(root: Path, file_names: dict[int, str]) -> None:
    for folder in sorted({os.path.dirname(file) for file in file_names.values()}):
        if not os.path.isdir(root / folder):
            logger.warning(
                "%s: no such folder; download the images, %simages.zip and images2.zip, as `bua download "
                "visual-genome --only images` does",
                root / folder,
                GENOME_IMAGES,
            )
