"""After a download, the commands that prepare data find everything where they expect it.

The official archives are made of Shapes, whose files have the formats and the names of the real ones.
"""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from local_site import zipped

from bua.commands import main
from bua.download import CATALOG, download
from bua.download.data_set import DataSet, File
from bua.shapes.make import make_shapes


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A folder with the files of Shapes that the real data sets have too, in the layout of datasets/README.md."""
    root = tmp_path_factory.mktemp("official")
    shapes = root / "visual_genome"
    make_shapes(shapes, 12, 4, 4, processes=1)
    for name in ("vqa", "flickr30k_entities"):
        shutil.move(shapes / name, root / name)
    shutil.move(shapes / "captions", root / "coco")
    for split in ("train2014", "val2014", "test2015"):
        shutil.copytree(shapes / split, root / "coco" / split)
        if split != "test2015":
            shutil.copy(root / f"coco/captions_{split}.json", root / f"coco/captions_{split[:-4]}2017.json")
    for name in (
        *("visual_genome/object_alias.txt", "visual_genome/relationship_alias.txt", "visual_genome/relationships.json"),
        "visual_genome/shapes.json",
        "vqa/v2_mscoco_test2015_annotations.json",
    ):
        (root / name).unlink()  # these are not read, or are no part of the real data sets
    for split in ("train2014", "val2014", "test2015"):
        shutil.rmtree(shapes / split)
    shutil.rmtree(shapes / "flickr30k_images")
    images = json.loads((root / "coco/dataset_coco.json").read_text())["images"]
    for split in ("train", "val", "test"):
        lines = [f"{image['filename']} {image['cocoid']}\n" for image in images if image["split"] == split]
        (root / f"coco/karpathy_{split}_images.txt").write_text("".join(lines))
    (root / "glove.6B.300d.txt").write_text("".join(f"{word} {'0.5 ' * 299}0.5\n" for word in ("the", "a", "circle")))
    return root


def serve(site, data_set: DataSet, official: Path) -> DataSet:
    """Puts the files of a data set on the local server, and returns the data set with their addresses."""

    def served(file: File) -> File:
        if file.members:
            members = {
                str(PurePosixPath(pattern).parent / path.name): path.read_bytes()
                for pattern, folder in file.members.items()
                for path in (official / folder).glob(PurePosixPath(pattern).name)
            }
            site.files[file.target] = zipped(members)
        else:
            site.files[file.target] = (official / file.target).read_bytes()
        return replace(file, url=site.url + file.target, size=None, checksum=None, count=None)

    parts = {
        name: replace(part, files=tuple(served(file) for file in part.files)) for name, part in data_set.parts.items()
    }
    return replace(data_set, parts=parts)


@pytest.mark.parametrize(
    ("name", "only", "written"),
    [
        ("visual-genome", [], "visual_genome/annotations/visual_genome_train.json"),
        ("vqa", [], "vqa/prepared/word_vectors.npz"),
        ("captions", [], "coco/captions/vocabulary.json"),
        ("captions", ["official", "lists"], "coco/captions/vocabulary.json"),
        ("flickr30k", [], "flickr30k/prepared/word_vectors.npz"),
    ],
)
def test_the_next_command_works(site, tmp_path, official, name, only, written):
    catalog = {key: serve(site, CATALOG[key], official) for key in (name, "glove")}
    lines: list[str] = []
    download(["glove"], tmp_path, catalog=catalog, progress=False)
    download([name], tmp_path, only=only, catalog=catalog, progress=False, show=lines.append)
    [command] = [line.removeprefix("next: bua ") for line in lines if line.startswith("next: ")]
    assert main(shlex.split(command)) == 0
    assert (tmp_path / written).is_file()


def test_every_part_has_its_layout(site, tmp_path, official):
    catalog = {name: serve(site, data_set, official) for name, data_set in CATALOG.items()}
    everything = [part for data_set in CATALOG.values() for part in data_set.parts]
    download(list(catalog), tmp_path, only=everything, catalog=catalog, progress=False, show=lambda _: None)
    assert contents(tmp_path) == contents(official)


def contents(root: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(".unpacked")}
