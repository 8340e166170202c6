"""Features from one format to another."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bua.errors import InputError
from bua.features.ids import image_id_of, parse_id
from bua.features.store import FORMATS, FeatureStore, FeatureWriter, open_features, open_writer
from bua.io.files import whole_file

SYNC_SECONDS = 30.0


def convert_features(
    source: str | Path,
    target: str | Path,
    format: str,
    about: dict | None = None,
    ids: str | Path | Mapping[int | str, int | str] = "keep",
) -> int:
    """Copies the images of ``source`` that ``target`` lacks, one at a time, so that memory does not grow with them.

    Images keep their order. What the target's format has no place for is left out. The settings of
    the features go along: ``<source>.meta.json``, and what a flat folder's header says about them.

    Args:
        source: features in any format.
        target: a file or folder; one from an earlier run that was stopped is gone on with.
        format: one of ``bua.features.FORMATS``.
        about: what is known of the features besides, such as "object_vocabulary" and
            "attribute_vocabulary", lists of names, for VinVL's rows.
        ids: "keep"; "number": COCO's number for ids that are the names of its images, as LXMERT's files have them;
            or a pattern that makes such names of numbers, as LXMERT's readers look for, such as
            ``"COCO_val2014_{:012d}"``; or the new id of each old one, as a mapping or a file with lines
            ``old<TAB>new``: images that are not in it are left out.

    Returns:
        How many images were copied.

    Raises:
        InputError: names what cannot be used; an image that cannot be read, or that the format cannot hold, stops
            the conversion, with those before it written.
    """
    source, target = Path(source), Path(target)
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(FORMATS)}")
    rename = _renaming(ids)
    if target.exists() and source.exists() and source.samefile(target):
        raise InputError(f"{target}: is the source; name another target")
    store = open_features(source)
    known = {**getattr(store, "about", {}), **(about or {})}
    settings = _read_settings(source) or known.get("settings")
    if settings:
        known["settings"] = settings
    with open_writer(target, format, known or None) as writer:
        _keep_settings(target, settings and {**settings, "format": format})
        try:
            copied = copy_missing(store, writer, f"{target} ({format})", rename)
            writer.finish()
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written: {error.strerror}; make room, and the same command goes on"
            ) from error
    return copied


def copy_missing(
    store: FeatureStore, writer: FeatureWriter, name: str, rename: Callable[[int | str], int | str | None] = parse_id
) -> int:
    """Appends what ``writer`` lacks of ``store``, with progress, synced as it goes; says how many images.

    Args:
        name: what is written, for the line that says what could not be.
        rename: the id that an image has in ``writer``; None leaves it out.

    Raises:
        InputError: an image cannot be read, or not be written.
    """
    wanted = [image_id for image_id in store if rename(image_id) is not None]
    missing = [image_id for image_id in wanted if rename(image_id) not in writer.done]
    synced = time.monotonic()
    progress = tqdm(missing, unit=" images", total=len(wanted), initial=len(wanted) - len(missing), disable=None)
    try:
        for image_id in progress:
            regions = store[image_id]
            try:
                writer.append(replace(regions, image_id=rename(image_id)))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            if time.monotonic() - synced > SYNC_SECONDS:
                writer.sync()
                synced = time.monotonic()
    except (InputError, KeyboardInterrupt):
        # Some writers have images wait in memory.
        writer.sync()
        raise
    return len(missing)


def read_ids(path: str | Path) -> dict[int | str, int | str]:
    """New ids by old ones, from a file with lines ``old<TAB>new``.

    Raises:
        InputError: the file cannot be read; a line is no such pair, or one of its ids was there before.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of ids ({error})") from error
    found, taken = {}, set()
    for number, line in enumerate(lines, start=1):
        pair = [parse_id(text.strip()) for text in line.split("\t")]
        if len(pair) != 2 or "" in pair:
            raise InputError(f"{path}: line {number}: {line!r}: need old<TAB>new")
        old, new = pair
        if old in found or new in taken:
            raise InputError(f"{path}: line {number}: {old if old in found else new} was there before; remove one")
        found[old] = new
        taken.add(new)
    return found


def _renaming(ids: str | Path | Mapping[int | str, int | str]) -> Callable[[int | str], int | str | None]:
    if isinstance(ids, Mapping):
        return {parse_id(old): parse_id(new) for old, new in ids.items()}.get
    if ids == "keep":
        return parse_id
    if ids == "number":
        return lambda image_id: image_id_of(f"{image_id}.jpg")
    if Path(ids).is_file():
        return read_ids(ids).get
    if "{" not in str(ids):
        raise InputError(
            f"ids {str(ids)!r}: need keep, number or a pattern such as COCO_val2014_{{:012d}}, or a file of old<TAB>new"
        )

    def rename(image_id: int | str) -> int | str:
        try:
            return parse_id(ids.format(image_id))
        except (ValueError, LookupError) as error:
            raise InputError(f"ids {ids!r}: does not fit image {image_id} ({error})") from error

    return rename


def _settings_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.meta.json")


def _read_settings(path: Path) -> dict | None:
    settings = _settings_file(path)
    if not settings.exists():
        return None
    try:
        return json.loads(settings.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{settings}: cannot be read as JSON ({error}); remove it to convert without it") from error


def _keep_settings(path: Path, settings: dict) -> None:
    earlier = _read_settings(path)
    if earlier is not None and earlier != settings:
        raise InputError(f"{_settings_file(path)}: features of other settings; choose another target")
    if settings:
        with whole_file(_settings_file(path)) as file:
            file.write(json.dumps(settings, indent=1).encode() + b"\n")
