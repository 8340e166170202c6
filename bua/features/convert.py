"""Converts features from one format to another."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from bua.errors import InputError, shown
from bua.features.ids import image_id_of, parse_id, warnings_off
from bua.features.readers import check_ids, format_for
from bua.features.settings import read_settings, settings_file
from bua.features.store import FeatureStore, FeatureWriter, check_format, open_features, open_writer
from bua.io.files import Locked, whole_file
from bua.regular_files import read_regular

SYNC_SECONDS = 30.0


def convert_features(
    source: str | Path,
    target: str | Path,
    format: str | None = None,
    about: Mapping[str, object] | None = None,
    ids: str | Path | Mapping[int | str, int | str] = "keep",
    reader: str | None = None,
) -> int:
    """Copies the images of ``source`` that are not yet in ``target``.

    Images are copied one at a time, so that the memory in use does not grow with their number, in the order in which
    the source is read: that of its rows, or, for npz, mmf and grid-pth, which have a file for each image, that of the
    names of the files. Fields that the target's format cannot hold are left out. The settings of the features, from
    ``<source>.meta.json`` and from the header of a flat folder, are copied too.

    Args:
        source: Features in any format.
        target: A file or folder. A conversion that was stopped is continued.
        format: One of ``bua.features.FORMATS``; by default the one that ``reader`` reads.
        about: What else is known about the features, such as "object_vocabulary" and "attribute_vocabulary", lists of
            names, for VinVL's rows.
        ids: How the ids of images are changed. "keep": not at all. "number": COCO's number for ids that are names of
            COCO's images, as in LXMERT's files. A pattern such as ``"COCO_val2014_{:012d}"``: from numbers to such
            names, which LXMERT's readers expect. A mapping from old to new ids, or a file with lines
            ``old<TAB>new``: images that are not in it are left out.
        reader: One of ``bua.features.readers.READERS``, for which to write another flavour of the format.

    Returns:
        Number of images that were copied.

    Raises:
        InputError: The arguments cannot be used; or an image cannot be read, or cannot be held by the format. The
            images before it are in ``target`` then.
    """
    source, target = Path(source), Path(target)
    format = format_for(reader, format)
    check_format(format)
    rename = _renaming(ids)
    if target.exists() and source.exists() and source.samefile(target):
        raise InputError(f"{target}: is the source itself; name another target")
    store = open_features(source)
    known = {**getattr(store, "about", {}), **(about or {})}
    # Errors are raised before anything is written.
    if not _new_ids(store, rename):
        lacking = f"none of its {len(store)} images is in {ids}" if len(store) else "holds no images"
        raise InputError(f"{source}: {lacking}, so there is nothing to copy")
    settings = read_settings(source)
    if settings:
        known["settings"] = settings
    new_settings = _new_settings(settings, format, reader)
    _check_settings(target, new_settings, reader)
    name = f"{target} ({format}{f' for {reader}' if reader else ''})"
    # What an earlier run has staged is kept, to be continued.
    begun = target.exists() or _staged(target).exists()
    try:
        _try_first_image(store, target, format, known, rename, reader, name)
        with open_writer(target, format, known or None, reader) as writer:
            _write_settings(target, new_settings)
            copied = copy_missing(store, writer, name, rename)
            writer.finish()
    except OSError as error:
        # What was staged is kept, to be continued.
        if not target.exists() and not _staged(target).exists():
            settings_file(target).unlink(missing_ok=True)
        raise InputError(
            f"{target}: cannot be written: {error.strerror}; free some space and repeat the command to continue"
        ) from error
    except Locked:
        # What is there is being written by another process.
        raise
    except InputError:
        if not begun and not target.exists():
            _remove_beginnings(target)
        raise
    return copied


def copy_missing(
    store: FeatureStore, writer: FeatureWriter, name: str, rename: Callable[[int | str], int | str | None] = parse_id
) -> int:
    """Appends the images of ``store`` that ``writer`` does not have yet, shows the progress, and syncs regularly.

    Args:
        name: Name of the output in error messages.
        rename: Returns the id that an image gets in ``writer``, or None to leave it out.

    Returns:
        Number of images that were appended.

    Raises:
        InputError: An image cannot be read, or cannot be written.
    """
    new_ids = _new_ids(store, rename)
    missing = {image_id: new_id for image_id, new_id in new_ids.items() if new_id not in writer.done}
    synced = time.monotonic()
    already = len(new_ids) - len(missing)
    try:
        for image_id in tqdm(missing, unit=" images", total=len(new_ids), initial=already, disable=None):
            regions = store[image_id]
            try:
                writer.append(replace(regions, image_id=missing[image_id]))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            if time.monotonic() - synced > SYNC_SECONDS:
                writer.sync()
                synced = time.monotonic()
    except (InputError, KeyboardInterrupt):
        # Some writers still have images in memory.
        writer.sync()
        raise
    return len(missing)


def read_ids(path: str | Path) -> dict[int | str, int | str]:
    """Returns the new ids by the old ones, from a file with lines ``old<TAB>new``.

    Raises:
        InputError: The file cannot be read, a line is not such a pair, or an id occurs twice.
    """
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of ids ({error})") from error
    new_ids: dict[int | str, int | str] = {}
    taken = set()
    for number, line in enumerate(lines, start=1):
        pair = [parse_id(text.strip()) for text in line.split("\t")]
        if len(pair) != 2 or "" in pair:
            raise InputError(f"{path}: line {number}: {line!r} is not a pair old<TAB>new")
        old, new = pair
        if old in new_ids or new in taken:
            raise InputError(f"{path}: line {number}: {old if old in new_ids else new} occurs twice; remove one")
        new_ids[old] = new
        taken.add(new)
    return new_ids


def _renaming(ids: str | Path | Mapping[int | str, int | str]) -> Callable[[int | str], int | str | None]:
    if isinstance(ids, Mapping):
        return {parse_id(old): parse_id(new) for old, new in ids.items()}.get
    if ids == "keep":
        return parse_id
    if ids == "number":
        return lambda image_id: image_id_of(f"{image_id}.jpg")
    if Path(ids).is_file():
        return read_ids(ids).get
    pattern = str(ids)
    if "{" not in pattern:
        raise InputError(
            f"ids {pattern!r}: give keep, number, a pattern such as COCO_val2014_{{:012d}}, or a file of old<TAB>new"
        )

    def rename(image_id: int | str) -> int | str:
        try:
            return parse_id(pattern.format(image_id))
        except (ValueError, LookupError) as error:
            raise InputError(f"ids {pattern!r}: does not fit image {image_id} ({error})") from error

    return rename


def _new_ids(store: FeatureStore, rename: Callable[[int | str], int | str | None]) -> dict[int | str, int | str]:
    """Returns the new ids by the old ones, without images that are left out.

    Raises:
        InputError: Two images get the same id.
    """
    new_ids: dict[int | str, int | str] = {}
    old_ids: dict[int | str, int | str] = {}
    for image_id in store:
        new_id = rename(image_id)
        if new_id is None:
            continue
        if old_ids.setdefault(new_id, image_id) != image_id:
            raise InputError(
                f"ids: images {str(old_ids[new_id])[:60]} and {str(image_id)[:60]} would both get the id "
                f"{str(new_id)[:60]}; keep the ids, or give a file of old<TAB>new"
            )
        new_ids[image_id] = new_id
    return new_ids


def _remove_beginnings(path: Path) -> None:
    """Removes what a conversion that cannot succeed has left beside a target that it has not begun, so that a corrected
    one can use the name."""
    settings_file(path).unlink(missing_ok=True)
    if _staged(path).is_dir():
        shutil.rmtree(_staged(path))


def _staged(path: Path) -> Path:
    """Returns where writers of HDF5 collect the images of a target."""
    return path.with_name(f"{path.name}.partial")


def _try_first_image(
    store: FeatureStore,
    target: Path,
    format: str,
    about: Mapping[str, object],
    rename: Callable[[int | str], int | str | None],
    reader: str | None,
    name: str,
) -> None:
    """Writes the first image elsewhere, so that nothing is left in the target if its format cannot hold the images."""
    new_ids = ((image_id, new_id) for image_id in store if (new_id := rename(image_id)) is not None)
    first = next(new_ids, None)
    if first is None or target.exists():
        return
    check_ids(reader, (new_id for _, new_id in (first, *new_ids)))
    regions = replace(store[first[0]], image_id=first[1])
    with TemporaryDirectory() as folder:
        trial = Path(folder) / target.name
        try:
            with warnings_off(), open_writer(trial, format, about, reader) as writer:
                writer.append(regions)
        except InputError as error:
            raise InputError(f"{name}: {str(error).removeprefix(f'{trial}: ')}") from error


def _new_settings(settings: dict[str, Any] | None, format: str, reader: str | None) -> dict[str, Any] | None:
    """Returns the settings of the target: those of the source, with the format and the reader."""
    if not settings and reader is None:
        return None
    kept = {key: value for key, value in (settings or {}).items() if key != "for"}
    return {**kept, "format": format, **({"for": reader} if reader else {})}


def _check_settings(path: Path, settings: dict[str, Any] | None, reader: str | None) -> None:
    file = settings_file(path)
    earlier = read_settings(path) if file.exists() else None
    if earlier is not None and earlier != settings:
        settings = settings or {}
        if earlier.get("for") != reader:
            raise InputError(
                f"{path}: was written for {shown(earlier.get('for') or 'no reader')}, and not for "
                f"{reader or 'no reader'}; choose another target"
            )
        key = next(key for key in sorted(earlier.keys() | settings.keys()) if earlier.get(key) != settings.get(key))
        raise InputError(
            f"{file}: the features have other settings: {key} is {shown(earlier.get(key))}, and of the source "
            f"{shown(settings.get(key))}; choose another target"
        )
    if earlier is None and reader is not None and path.exists():
        raise InputError(f"{path}: exists, and was not written for {reader}; choose another target")


def _write_settings(path: Path, settings: dict[str, Any] | None) -> None:
    if settings:
        with whole_file(settings_file(path), locked=True) as target:
            target.write(json.dumps(settings, indent=1).encode() + b"\n")
