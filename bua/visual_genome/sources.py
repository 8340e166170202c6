"""Finds Visual Genome's official JSON files, vocabularies and splits in a data set's folder, and writes new lists."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bua.download.catalog import GENOME_IMAGES, GENOME_JSON
from bua.errors import InputError, make_folder
from bua.io.files import write_together
from bua.vocabulary import find_lines


@dataclass
class Sources:
    """Paths of Visual Genome's JSON files in a folder.

    Attributes:
        image_data, attributes: The files of these names.
        objects: scene_graphs.json, which the original reads, or else objects.json.
        relationships: scene_graphs.json, too, or else relationships.json, or None if there is neither.
    """

    image_data: Path
    attributes: Path
    objects: Path
    relationships: Path | None

    @classmethod
    def find(cls, root: Path) -> "Sources":
        """Returns the files in ``root``. Raises an error that says what to download if one is missing."""
        scene_graphs, objects, relationships = (
            root / f"{name}.json" for name in ("scene_graphs", "objects", "relationships")
        )
        if objects.is_file() and not scene_graphs.is_file():
            found = relationships if relationships.is_file() else None
            sources = cls(root / "image_data.json", root / "attributes.json", objects, found)
        else:
            sources = cls(root / "image_data.json", root / "attributes.json", scene_graphs, scene_graphs)
        needed = (sources.image_data, sources.attributes, sources.objects)
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            zips = ", ".join(f"{GENOME_JSON}{file}.zip" for file in missing)
            raise InputError(
                f"{root}: has no {', '.join(missing)}; download {zips} and unzip there (and the images,"
                f" {GENOME_IMAGES}images.zip and {GENOME_IMAGES}images2.zip), as `bua download visual-genome` does"
            )
        return sources


def text_file(root: Path, relative: str) -> Path:
    """Returns the path of a vocabulary or a list of images in ``root``, which may have the suffix .gz.

    Raises:
        InputError: There is no such file.
    """
    found = find_lines(root / relative)
    if found is None:
        raise InputError(f"{root / relative}: no such file; datasets/README.md says where to get it")
    return found


def write_lists(lists: Mapping[Path, Iterable[str]]) -> None:
    """Writes vocabularies and lists of images, by their paths, line by line. An interruption leaves all or none of
    them, so that the same command can be given again."""
    for folder in {path.parent for path in lists}:
        make_folder(folder)
    write_together({path: "".join(f"{line}\n" for line in lines).encode() for path, lines in lists.items()})
