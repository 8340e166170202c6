"""Fuzzing of features: files of every format, read, summarised, continued by a writer, and converted."""

import functools
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
from cases import Finding, Target, made_in_folder
from mutations import NAMES, Files, mutate_bytes, mutate_files, mutate_text, mutate_zip

from bua.errors import InputError
from bua.features import FORMATS, convert_features, open_features, open_writer
from bua.features.store import GRID_FORMATS
from bua.features.summary import summarize
from bua.structures import Regions

IDS = (1, 22, "x/y")
ADDED = 333
REGIONS, DIM, OBJECTS, ATTRIBUTES = 3, 5, 4, 3
ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(OBJECTS)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(ATTRIBUTES)],
}
PATHS = {"hdf5": "features.hdf5", "ban-hdf5": "features.hdf5"}
LABELS = {
    "object_ids": np.int64,
    "object_scores": np.float32,
    "attribute_ids": np.int64,
    "attribute_scores": np.float32,
}
FORMAT_FILE = "format"  # the target's format, in cases of conversion


def _regions(image_id: int | str) -> Regions:
    """Returns the regions of an image, which depend on its id alone and are exact in float16."""
    rng = np.random.default_rng(list(str(image_id).encode()))
    corners = rng.integers(0, 99, (REGIONS, 2))
    return Regions(
        image_id,
        width=200 + len(str(image_id)),
        height=210,
        boxes=np.concatenate([corners, corners + rng.integers(1, 99, (REGIONS, 2))], axis=1).astype(np.float32),
        features=rng.integers(0, 1000, (REGIONS, DIM)).astype(np.float32),
        object_ids=rng.integers(0, OBJECTS, REGIONS),
        object_scores=rng.integers(0, 8, REGIONS).astype(np.float32) / 8,
        attribute_ids=rng.integers(0, ATTRIBUTES, REGIONS),
        attribute_scores=rng.integers(0, 8, REGIONS).astype(np.float32) / 8,
    )


ORIGINALS = {image_id: _regions(image_id) for image_id in (*IDS, ADDED)}


def _path(format: str) -> Path:
    return Path(PATHS.get(format, "features"))


def _ids_for(reader: str | None) -> tuple[int | str, ...]:
    """Returns the ids of the images in samples. Some readers find images by numbers alone."""
    return IDS if reader is None else tuple(image_id for image_id in IDS if isinstance(image_id, int))


def _samples(format: str, finished: bool = True, reader: str | None = None) -> list[Files]:
    """Features of three images, as they are when the writer has finished, and as they are after they were read, which
    adds an index to some formats; if not ``finished``, as they are when the writer was stopped."""
    ids = _ids_for(reader)

    def write(folder: Path, read: bool) -> None:
        path = folder / _path(format)
        with open_writer(path, format, ABOUT, reader) as writer:
            for image_id in ids:
                writer.append(ORIGINALS[image_id])
            if finished:
                writer.finish()
            else:
                writer.sync()
        if read:
            dict(open_features(path))

    return [made_in_folder(functools.partial(write, read=read)) for read in ((False, True) if finished else (False,))]


def _mutate(format: str, random: Random, files: Files) -> Files:
    what = mutate_bytes
    if format in ("tsv", "lxmert-tsv", "vinvl-tsv", "oscar-tsv") and random.random() < 0.5:
        what = mutate_text
    if format == "npz" and random.random() < 0.5:
        # Removed and exchanged files are left to the other half.
        name = random.choice(sorted(files))
        return {**files, name: mutate_zip(random, files[name])}
    return mutate_files(random, files, what)


def _check(format: str, sample: Files) -> str:
    """Reads all images. Every image is well formed, correct or refused; damage is never taken for a missing image."""
    path = _path(format)
    outcome = _compare(_read_all(open_features(path)))
    summarize(path)
    untouched = {
        name for name, content in sample.items() if Path(name).is_file() and Path(name).read_bytes() == content
    }
    if format in ("npz", "mmf"):
        _check_other_files(open_features(path), sample, untouched)
    return outcome


def _read_all(store: Mapping[int | str, Regions]) -> dict[int | str, Regions | None]:
    """Returns all images of a store, with None for those that are refused."""
    found: dict[int | str, Regions | None] = {}
    for image_id in store:
        try:
            found[image_id] = regions = store[image_id]
        except InputError:
            found[image_id] = None
            continue
        _check_form(image_id, regions)
    if len(found) != len(store):
        raise Finding(f"a store of {len(store)} images lists {len(found)}")
    return found


def _check_form(image_id: int | str, regions: Regions) -> None:
    count = len(regions.boxes)
    arrays = {"boxes": (np.float32, (count, 4)), "features": (np.float32, (count, regions.features.shape[-1]))}
    arrays |= {name: (kind, (count,)) for name, kind in LABELS.items() if getattr(regions, name) is not None}
    for name, (kind, shape) in arrays.items():
        array = getattr(regions, name)
        if array.dtype != kind or array.shape != shape:
            raise Finding(f"image {image_id!r}: {name} is {array.dtype} {array.shape} for {count} boxes")
    if regions.image_id != image_id or type(regions.image_id) not in (int, str):
        raise Finding(f"image {image_id!r}: its regions have the id {regions.image_id!r}")
    if not all(type(side) is int and side >= 0 for side in (regions.width, regions.height)):
        raise Finding(f"image {image_id!r}: its size is {regions.width!r} x {regions.height!r}")


def _compare(found: Mapping[int | str, Regions | None]) -> str:
    """Returns "correct" if all images are as they were written, else the worst of what happened to them."""
    if any(regions is None for regions in found.values()):
        return "refused"
    if set(found) != set(IDS):
        return "missing"
    return "correct" if all(_same(regions, ORIGINALS[image_id]) for image_id, regions in found.items()) else "changed"


def _same(regions: Regions | None, original: Regions) -> bool:
    """Whether regions are equal. Labels are compared if both have them, since some formats do not keep them."""
    if regions is None or len(regions) != len(original):
        return False
    pairs = [(getattr(regions, name), getattr(original, name)) for name in ("boxes", "features", *LABELS)]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs if a is not None and b is not None)


def _check_other_files(store: Mapping[int | str, Regions], sample: Files, untouched: set[str]) -> None:
    """In formats with files of their own for each image, damage to one of them must not change the other images."""
    for image_id in IDS:
        stem = f"features/{str(image_id).replace('/', '%2F')}"
        own = {name for name in sample if name.startswith((f"{stem}.", f"{stem}_info"))}
        if own <= untouched and not _same(store[image_id], ORIGINALS[image_id]):
            raise Finding(f"image {image_id!r}: has changed, although its files have not")


def _check_zip(sample: Files) -> str:
    """As ``_check``; besides, the checksums of zip archives find every damage to their content."""
    path = _path("npz")
    outcome = _compare(_read_all(open_features(path)))
    if outcome == "changed":
        raise Finding("damage to an archive with checksums changes what is read")
    return outcome


def _mutate_one(random: Random, files: Files) -> Files:
    name = random.choice(sorted(files))
    return {**files, name: mutate_bytes(random, files[name])}


def _check_continued(format: str, sample: Files, reader: str | None = None) -> str:
    """A writer that continues damaged features either refuses them, or keeps every image that could be read before,
    except for images that it knows to be missing, which the run writes again."""
    path = _path(format)
    try:
        before = _read_all(open_features(path))
    except InputError:
        before = {}
    if ADDED in before:
        return "occupied"
    try:
        with open_writer(path, format, ABOUT, reader) as writer:
            done = set(writer.done)
            writer.append(ORIGINALS[ADDED])
            writer.finish()
    except InputError:
        after = _read_all(open_features(path)) if before else {}
        _check_kept(before, after, set(before))
        return "refused"
    after = _read_all(open_features(path))
    _check_kept(before, after, done)
    if not _same(after.get(ADDED), ORIGINALS[ADDED]):
        raise Finding("the image that was added is not there")
    if done - set(after):
        raise Finding("images that count as written are not there")
    return "continued"


def _check_kept(before: Mapping, after: Mapping, done: set[int | str]) -> None:
    for image_id, regions in before.items():
        if image_id in done and regions is not None and not (image_id in after and _same(after[image_id], regions)):
            raise Finding(f"the writer lost image {image_id!r}")


def _conversions() -> list[Files]:
    return [
        {**files, FORMAT_FILE: b"npz"} for format in ("tsv", "lxmert-tsv", "oscar-tsv") for files in _samples(format)
    ]


def _mutate_conversion(random: Random, files: Files) -> Files:
    """Gives an image a hostile id, or damages the features, and chooses the format to convert them to."""
    data = files["features"]
    if random.random() < 0.5:
        lines = data.split(b"\n")
        row = random.randrange(len(IDS))
        lines[row] = b"\t".join([random.choice(NAMES), *lines[row].split(b"\t")[1:]])
        data = b"\n".join(lines)
    else:
        data = mutate_text(random, data)
    kept = files if random.random() < 0.3 else {}
    return {**kept, "features": data, FORMAT_FILE: random.choice(list(FORMATS)).encode()}


def _check_conversion(sample: Files) -> str:
    format = Path(FORMAT_FILE).read_text()
    source = {
        image_id: regions for image_id, regions in _read_all(open_features("features")).items() if regions is not None
    }
    target = Path("converted.hdf5" if "hdf5" in format else "converted")
    convert_features("features", target, format, ABOUT)
    found = _read_all(open_features(target))
    if set(found) != set(source):
        raise Finding(f"images {sorted(map(str, source))} became {sorted(map(str, found))}")
    for image_id, regions in source.items():
        stored = found[image_id]
        exact = format != "flat-fp16" or np.array_equal(regions.features, regions.features.astype(np.float16))
        if exact and not (stored is not None and np.array_equal(stored.features, regions.features, equal_nan=True)):
            raise Finding(f"the features of image {image_id!r} are others in {format}")
    return "converted"


def _of_format(format: str) -> dict[str, Target]:
    samples, mutate = functools.partial(_samples, format), functools.partial(_mutate, format)
    continued = samples if format in ("hdf5", "ban-hdf5") else functools.partial(_samples, format, False)
    return {
        f"read-{format}": Target("features", samples, mutate, functools.partial(_check, format)),
        f"continue-{format}": Target("features", continued, mutate, functools.partial(_check_continued, format)),
    }


TARGETS = {
    name: target for format in FORMATS if format not in GRID_FORMATS for name, target in _of_format(format).items()
}
TARGETS["continue-m2"] = Target(
    "features",
    functools.partial(_samples, "hdf5", reader="m2"),
    functools.partial(_mutate, "hdf5"),
    functools.partial(_check_continued, "hdf5", reader="m2"),
)
TARGETS["checksums-npz"] = Target("features", functools.partial(_samples, "npz"), _mutate_one, _check_zip)
TARGETS["convert"] = Target("features", _conversions, _mutate_conversion, _check_conversion)
