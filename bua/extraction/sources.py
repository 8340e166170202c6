"""Where pictures come from: a folder, a glob, one picture, a list file or a COCO JSON."""

import glob
from pathlib import Path
from typing import NamedTuple

import orjson

from bua.errors import InputError
from bua.features.ids import image_id_of, parse_id

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageFile(NamedTuple):
    """A picture to be read, and the id that its features get."""

    path: str
    image_id: int | str


def list_images(source: str | Path, image_root: str | Path | None = None) -> list[ImageFile]:
    """The pictures that ``source`` names, each id once, in its order (folders and globs sorted by path).

    Args:
        source: a folder (with its subfolders), a glob such as ``"val2014/*.jpg"``, a picture, a COCO JSON (``images``
            with ``id`` and ``file_name``), or a list file: UTF-8, a line ``path`` or ``path<TAB>id`` for each.
            Where no id is given, it is ``bua.features.ids.image_id_of`` the path.
        image_root: what relative paths in a JSON or a list are relative to; for a list it may be left out and is the
            current folder then.

    Raises:
        InputError: ``source`` does not exist, is none of these, names no picture, or gives two pictures one id.
    """
    path = Path(source)
    if path.is_dir():
        images = _named_by_path(found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES)
    elif not path.exists():
        if not glob.has_magic(str(source)):
            raise InputError(
                f"{source}: no such file or folder; give pictures as a folder, glob, list file or COCO JSON"
            )
        images = _named_by_path(Path(found) for found in glob.glob(str(source), recursive=True))
    elif path.suffix.lower() in SUFFIXES:
        images = _named_by_path([path])
    elif path.suffix.lower() == ".json":
        images = _read_coco(path, image_root)
    else:
        images = _read_list(path, Path(image_root or "."))
    if not images:
        raise InputError(f"{source}: no pictures there ({' '.join(SUFFIXES)})")
    _check_ids(images, source)
    return images


def _named_by_path(paths) -> list[ImageFile]:
    return [ImageFile(str(path), image_id_of(path)) for path in sorted(paths)]


def _read_coco(path: Path, image_root: str | Path | None) -> list[ImageFile]:
    if image_root is None:
        raise InputError(f"{path}: a COCO JSON does not say where its pictures are; give their folder as image root")
    try:
        content = orjson.loads(path.read_bytes())
        images = content["images"]
        for image in images:
            if type(image["id"]) not in (int, str):
                raise InputError(f"{path}: images: an id is {image['id']!r}; it must be a number or a text")
        return [ImageFile(str(Path(image_root) / image["file_name"]), parse_id(image["id"])) for image in images]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a COCO JSON: needs images, a list with id and file_name") from error


def _read_list(path: Path, image_root: Path) -> list[ImageFile]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: neither a picture ({' '.join(SUFFIXES)}) nor a list file in UTF-8") from error
    images = []
    for number, line in enumerate(lines, start=1):
        name, *ids = line.removesuffix("\r").split("\t")
        if not name and not ids:
            continue
        if not name or len(ids) > 1 or ids == [""]:
            raise InputError(f"{path}: line {number}: need `path` or `path<TAB>id`")
        image_id = parse_id(ids[0]) if ids else image_id_of(name)
        images.append(ImageFile(str(image_root / name), image_id))
    return images


def _check_ids(images: list[ImageFile], source: str | Path) -> None:
    paths: dict[int | str, str] = {}
    for path, image_id in images:
        if image_id in paths:
            raise InputError(
                f"{source}: {paths[image_id]} and {path} both have the id {image_id}; "
                "name the pictures in a list file with `path<TAB>id`"
            )
        paths[image_id] = path
