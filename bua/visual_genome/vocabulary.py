"""Builds vocabularies of the most frequent names in Visual Genome, and writes how often each name occurs.

The rules are those of ``build_vocabs_and_xml`` in data/genome/setup_vg.py of peteanderson80/bottom-up-attention:

- All objects and relationships of all images count, whether the images are in a split or not.
- The name of an object counts in its cleaned form, and each of the adjectives before it as an attribute.
- Of the attributes of a record in attributes.json only the first entry counts. It may hold several ("red and shiny").
- Empty predicates do not count. Empty names of objects and attributes do.
- Names are not joined: the aliases in the published vocabularies were put together by hand.

The original orders names of the same frequency as a Python dict does, and the names of a vocabulary as a Python set
does. Here the most frequent name is the first, and names of the same frequency are in alphabetical order. A vocabulary
file cannot hold an empty name, or one with a comma, which would be read as two aliases, or with a line break: these
names are skipped, and the next ones take their places.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bua.errors import InputError
from bua.visual_genome.names import clean_attribute, clean_name, clean_object_name
from bua.visual_genome.records import (
    attribute_texts_of,
    iter_images,
    naming_image,
    object_name_of,
    predicate_of,
    relationships_of,
)
from bua.visual_genome.sources import Sources, write_lists
from bua.vocabulary import Vocabulary, find_lines

# Sizes of the original's vocabularies before they were reduced by hand to 1600, 400 and 20 names
# (data/genome/setup_vg.py, max_objects, max_attributes and max_relations).
MAX_NAMES = {"objects": 2500, "attributes": 1000, "relations": 500}


@dataclass
class NameCounts:
    """How often each cleaned name occurs in all images."""

    objects: Counter[str] = field(default_factory=Counter)
    attributes: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)


def build_vocabularies(
    root: str | Path,
    num_objects: int | None = None,
    num_attributes: int | None = None,
    num_relations: int | None = None,
    progress: bool = True,
) -> None:
    """Writes vocab/{objects,attributes,relations}_vocab.txt with the most frequent names, and ..._count.txt.

    Arguments and errors are those of ``choose_vocabularies``.
    """
    write_lists(choose_vocabularies(root, num_objects, num_attributes, num_relations, progress))


def choose_vocabularies(
    root: str | Path,
    num_objects: int | None = None,
    num_attributes: int | None = None,
    num_relations: int | None = None,
    progress: bool = True,
) -> dict[Path, list[str]]:
    """Makes vocabularies of the most frequent names, and lists of how often names occur, without writing them.

    The count files list all names that occur, the most frequent first, as the original does: a name, a tab and a
    number in each line.

    Args:
        root: The data set's folder, see ``bua.visual_genome.prepare.prepare``. If it has objects.json instead of
            scene_graphs.json, the relations are read from relationships.json. If that is missing, no vocabulary of
            relations is written.
        num_objects, num_attributes, num_relations: Number of names in each vocabulary. With None, it has the 2,500,
            1,000 or 500 names of the original, or all if there are fewer.
        progress: Whether to show progress bars.

    Returns:
        The lines of vocab/{objects,attributes,relations}_vocab.txt and ..._count.txt, by path.

    Raises:
        InputError: A vocabulary exists already, or the files have fewer names than requested.
    """
    folder = Path(root) / "vocab"
    sources = Sources.find(Path(root))
    sizes = {"objects": num_objects, "attributes": num_attributes, "relations": num_relations}
    if sources.relationships is None:
        if num_relations is not None:
            raise InputError(
                f"{root}: has neither scene_graphs.json nor relationships.json, which vocab/relations_vocab.txt is "
                "built from; download one of them"
            )
        del sizes["relations"]
    targets = {kind: folder / f"{kind}_vocab.txt" for kind in sizes}
    for target in targets.values():
        if find_lines(target) is not None:
            raise InputError(
                f"{target}: the file exists already; move it away, or leave out --build-vocabulary to use it"
            )
    counts = vars(count_names(sources, progress))
    chosen = {kind: _most_frequent(counts[kind], kind, size, targets[kind], root) for kind, size in sizes.items()}
    lists = {}
    for kind, names in chosen.items():
        lists[folder / f"{kind}_count.txt"] = [f"{name}\t{count}" for name, count in ranked(counts[kind])]
        lists[targets[kind]] = Vocabulary(names).lines
    return lists


def count_names(sources: Sources, progress: bool = True) -> NameCounts:
    """Counts the names in Visual Genome's files by the rules above."""
    objects: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    predicates: Counter[str] = Counter()
    for image_id, image in iter_images(sources.objects, "objects", progress):
        with naming_image(sources.objects, image_id):
            objects.update(map(object_name_of, image["objects"]))
            if sources.relationships == sources.objects:
                predicates.update(map(predicate_of, relationships_of(image)))
    if sources.relationships not in (None, sources.objects):
        for image_id, image in iter_images(sources.relationships, "relationships", progress):
            with naming_image(sources.relationships, image_id):
                predicates.update(map(predicate_of, relationships_of(image)))
    for image_id, image in iter_images(sources.attributes, "attributes", progress):
        with naming_image(sources.attributes, image_id):
            for record in image["attributes"]:
                attributes.update(text for text in attribute_texts_of(record)[:1] if isinstance(text, str))
    # Most texts occur many times. Each is cleaned once.
    counts = NameCounts()
    for text, count in objects.items():
        name, adjectives = clean_object_name(text)
        counts.objects[name] += count
        for adjective in adjectives:
            counts.attributes[adjective] += count
    for text, count in attributes.items():
        for attribute in clean_attribute(text):
            counts.attributes[attribute] += count
    for text, count in predicates.items():
        if name := clean_name(text):
            counts.relations[name] += count
    return counts


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the names with their counts, the most frequent first, and names of the same count alphabetically."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _most_frequent(counts: Mapping[str, int], kind: str, size: int | None, target: Path, root: str | Path) -> list[str]:
    # One line is one class, and a comma separates its aliases.
    usable = [name for name, _ in ranked(counts) if name and "," not in name and len(name.splitlines()) == 1]
    if size is None and usable:
        return usable[: MAX_NAMES[kind]]
    if size is None or not 0 < size <= len(usable):
        raise InputError(
            f"{target}: {'names' if size is None else f'{size} names'} are requested, but {root} has {len(usable)}"
            + (f"; choose 1 to {len(usable)}" if usable else "; use other files")
        )
    return usable[:size]
