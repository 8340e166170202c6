"""Lists the images of a source: a folder, a glob, a list, a JSON of COCO or Visual Genome, or tar shards."""

import glob
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from bua.errors import InputError, shown
from bua.extraction.tar_shards import images_in_shard
from bua.features.ids import image_id_of, parse_id
from bua.io.json_records import iter_records, read_json, without_gc
from bua.regular_files import open_regular, open_regular_or_stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")  # compressed archives are recognised, so that a message can refuse them
STANDARD_INPUT = "-"
_NUMBER_RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")
# More names than a range such as "{000..123}" stands for in any data set.
MAX_RANGE = 1_000_000

logger = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file, and the id that its features get.

    Attributes:
        path: The file that contains the image.
        image_id: An integer if its text is the decimal form of one (``bua.features.ids.parse_id``), otherwise text.
        span: (offset, size) in bytes of an image in a tar shard; None if the file as a whole is the image.
    """

    path: str
    image_id: int | str
    span: tuple[int, int] | None = None


def list_images(
    source: str | Path,
    image_root: str | Path | None = None,
    *,
    id_of: Callable[[str], int | str] = image_id_of,
) -> list[ImageFile]:
    """Returns the images that ``source`` names, in its order (those of folders and globs sorted by path).

    Args:
        source: One of
            a folder, which includes its subfolders;
            an image, a glob such as ``"val2014/*.jpg"``, or a range such as ``"part-{00..31}/*.jpg"``;
            a list file in UTF-8 with one line ``path`` or ``path<TAB>id`` per image, or a process substitution of the
            shell, ``<(command)``; ``"-"`` for such lines on standard input;
            a COCO JSON (``images`` with ``id`` and ``file_name``) or Visual Genome's image_data.json (a list with
            ``image_id`` and ``url``; the last folder and the name of the url are the path);
            WebDataset's tar shards, uncompressed: one, a glob, or a range such as ``"train-{000..123}.tar"``. Their
            ids are WebDataset's keys (``bua.extraction.tar_shards``).
        image_root: The folder that the paths in a JSON or a list are relative to. For a list it may be omitted; then it
            is the current folder.
        id_of: Returns the id of a path, for sources that give no id.

    Raises:
        InputError: ``source`` does not exist, is none of these, names no image, or gives two images the same id.
    """
    source = os.fspath(source)
    with without_gc():
        images = _list(source, image_root, id_of)
        if not images:
            hint = f"; for tar shards give {os.path.join(source, '*.tar')}" if os.path.isdir(source) else ""
            raise InputError(f"{source}: contains no images ({' '.join(SUFFIXES)}){hint}")
        _check_ids(images, source)
    return images


def _list(source: str, image_root: str | Path | None, id_of: Callable[[str], int | str]) -> list[ImageFile]:
    if source == STANDARD_INPUT:
        return _read_list(sys.stdin.buffer, "standard input", image_root, id_of)
    if os.path.isdir(source):
        return _named_by_path(_find_images(source), id_of)
    if not os.path.exists(source) or source.lower().endswith(SUFFIXES + SHARD_SUFFIXES):
        paths = _expand(source)
        shards = [path for path in paths if path.lower().endswith(SHARD_SUFFIXES)]
        images = [path for path in paths if not path.lower().endswith(SHARD_SUFFIXES)]
        return _named_by_path(images, id_of) + _in_shards(shards)
    try:
        if source.lower().endswith(".json"):
            return _read_json(source, image_root)
        with open_regular_or_stream(source) as lines:
            return _read_list(lines, source, image_root, id_of)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error


def _expand(pattern: str) -> list[str]:
    """Returns the files that a name, a glob or a range such as ``{000..123}`` stands for."""
    if os.path.exists(pattern):
        return [pattern]
    if numbers := _NUMBER_RANGE.search(pattern):
        first, last = numbers.groups()
        if int(last) - int(first) >= MAX_RANGE:
            raise InputError(f"{pattern}: this range has more than {MAX_RANGE} numbers; give a smaller one")
        width = max(map(len, (first, last))) if first.startswith("0") and len(first) > 1 else 0
        names = (
            f"{pattern[: numbers.start()]}{number:0{width}d}{pattern[numbers.end() :]}"
            for number in range(int(first), int(last) + 1)
        )
        return [path for name in names for path in _expand(name)]
    if glob.has_magic(pattern):
        return sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    raise InputError(
        f"{pattern}: no such file or folder; give images as a folder, glob, list file, COCO JSON or tar shards"
    )


def _find_images(folder: str) -> list[str]:
    """Returns the images in a folder and its subfolders. Links are followed, and each folder is visited once. A broken
    link with the name of an image counts as one, and fails when it is read. So does whatever else has such a name."""
    found, folders, seen = [], [folder], set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        found.append(entry.path)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # For example a link to itself.
        if not entry.name.lower().endswith(SUFFIXES):
            logger.warning("%s: cannot be read: %s; it is left out", entry.path, error.strerror)
        return False


def _named_by_path(paths: list[str], id_of: Callable[[str], int | str]) -> list[ImageFile]:
    return [ImageFile(path, _in_utf8(id_of(path))) for path in paths]


def _in_utf8(image_id: int | str) -> int | str:
    """Returns an id that files of features can hold. A file name that is not UTF-8 gets escapes for its bytes."""
    if isinstance(image_id, int):
        return image_id
    return image_id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _in_shards(shards: list[str]) -> list[ImageFile]:
    return [
        ImageFile(shard, _in_utf8(parse_id(key)), (offset, size))
        for shard in tqdm(shards, desc="shards", unit="shard", disable=len(shards) < 2, mininterval=1)
        for key, offset, size in images_in_shard(shard, SUFFIXES)
    ]


def _read_json(path: str, image_root: str | Path | None) -> list[ImageFile]:
    if image_root is None:
        raise InputError(f"{path}: a JSON does not say where its images are; give their folder as the image root")
    with open_regular(path) as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    named = _in_visual_genome(path) if is_list else _in_coco(path)
    images = []
    for name, image_id in named:
        if type(image_id) not in (int, str):
            raise InputError(f"{path}: images: an id is {shown(image_id)}; it must be an integer or a string")
        if type(name) is not str:
            raise InputError(f"{path}: images: file_name of the image {image_id} is {shown(name)}; it must be a string")
        images.append(ImageFile(os.path.join(image_root, name), parse_id(image_id)))
    return images


def _in_coco(path: str) -> list[tuple[str, int | str]]:
    content = read_json(path)
    try:
        return [(image["file_name"], image["id"]) for image in content["images"]]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a COCO JSON: needs images, a list with id and file_name") from error


def _in_visual_genome(path: str) -> list[tuple[str, int | str]]:
    try:
        # In version 1.0 the field is called id.
        return [
            ("/".join(record["url"].rsplit("/", 2)[1:]), record["image_id" if "image_id" in record else "id"])
            for record in iter_records(path, progress=False)
        ]
    except (KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: a list, but not Visual Genome's image_data.json: needs image_id and url in each record"
        ) from error


def _read_list(
    lines: Iterable[bytes], source: str, image_root: str | Path | None, id_of: Callable[[str], int | str]
) -> list[ImageFile]:
    images = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source}: line {number}: not UTF-8; give an image ({' '.join(SUFFIXES)}) or a list file"
            ) from error
        name, *ids = text.split("\t")
        if not name and not ids:
            continue
        if not name or len(ids) > 1 or ids == [""]:
            raise InputError(f"{source}: line {number}: need `path` or `path<TAB>id`")
        image_id = parse_id(ids[0]) if ids else id_of(name)
        images.append(ImageFile(os.path.join(image_root, name) if image_root is not None else name, image_id))
    return images


def _check_ids(images: list[ImageFile], source: str) -> None:
    if len({image.image_id for image in images}) == len(images):
        return
    first: dict[int | str, ImageFile] = {}
    for image in images:
        earlier = first.setdefault(image.image_id, image)
        if earlier is image:
            continue
        if image.span is not None:
            raise InputError(
                f"{source}: {earlier.path} and {image.path} both have the id {image.image_id}; "
                "names must differ before their first dot across all shards; repack them, or extract them separately"
            )
        if earlier == image:
            raise InputError(f"{source}: {image.path} is listed twice with the id {image.image_id}; remove one")
        raise InputError(
            f"{source}: {earlier.path} and {image.path} both have the id {image.image_id}; "
            "name the images in a list file with `path<TAB>id`"
        )
