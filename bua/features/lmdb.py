"""Features in an LMDB, as ViLBERT reads them.

A key is the id as text, its value a pickled dictionary of a row of the original's TSV (script/convert_trainval_lmdb.py
of jiasenlu/vilbert_beta): ``image_id``, ``image_w``, ``image_h``, ``num_boxes``, ``boxes`` and ``features``, all of
them text, the last two base64 of float32. Beside them stand, under LXMERT's names, the labels that ViLBERT's readers
leave alone: ``objects_id``, ``attrs_id`` (int64), ``objects_conf``, ``attrs_conf`` (float32), base64 too. The key
``keys`` has the pickled list of all keys.

facebookresearch/vilbert-multi-task (script/convert_to_lmdb.py) has the same keys and fields with numbers and arrays for
text. That is read here, and not written.
"""

import errno
import os
import pickle
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import lmdb
import numpy as np

from bua.errors import InputError
from bua.features.encoding import decode_array, encode_array
from bua.features.ids import parse_id
from bua.features.tsv import LABELS
from bua.io import safe_pickle
from bua.io.files import sync_folder
from bua.structures import Regions

_FLOAT = np.dtype("<f4")
_LIST_KEY = b"keys"
_LONGEST_KEY = 511

# Images are stored many at a time: a transaction waits for the disk twice.
_BATCH_BYTES = 32 << 20
_FIRST_MAP_BYTES = 1 << 30

# After the header of its first page an LMDB file has this number; these are its bytes on little-endian machines.
_MAGIC, _MAGIC_OFFSET = b"\xde\xc0\xef\xbe", 16


class LmdbFeatures(Mapping[int | str, Regions]):
    """The features in an LMDB of ViLBERT's, a folder or a single file, as they are when it is opened.

    Many processes and threads may read from one object, also one that was forked or pickled to them.

    Raises:
        InputError: when opened: no LMDB; when an image is read: names it and the field that does not decode.
    """

    format = "vilbert-lmdb"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._environment = _open_for_reading(self.path)
        self._ids = dict.fromkeys(_ids(self.path, self._environment))

    def __getitem__(self, image_id: int | str) -> Regions:
        image_id = parse_id(image_id)
        if image_id not in self._ids:
            raise KeyError(image_id)
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(_key(image_id))
        except lmdb.Error as error:
            raise InputError(f"{self.path}: image {image_id}: cannot be read ({error}); open the file anew") from error
        try:
            if value is None:
                raise ValueError("is listed and not there")
            return _decode(image_id, safe_pickle.loads(value))
        except ValueError as error:
            raise InputError(f"{self.path}: image {image_id}: {error}; extract this image again") from error

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id) -> bool:
        return parse_id(image_id) in self._ids

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_environment": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _environment=_open_for_reading(state["path"]))


class LmdbWriter:
    """Adds images to an LMDB in a folder, for ViLBERT's readers.

    Images wait in memory until there are 32 MB of them, or until ``sync``, and are then stored in one transaction,
    which is on the disk whole or not at all whatever happens to the process or the machine: LMDB's own guarantee,
    with none of its faster and less safe modes. A process that is killed loses those that wait, and ``done`` of the
    next writer lacks them.

    Attributes:
        done: the ids in the LMDB.

    Raises:
        InputError: the path holds something else, or is open in this process.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; vilbert-lmdb is written into a folder")
        # A writer that was killed at once leaves empty files of these names.
        if self.path.exists() and {entry.name for entry in self.path.iterdir()} - {"data.mdb", "lock.mdb"}:
            raise InputError(f"{self.path}: holds something else than an LMDB; choose another output")
        try:
            self._environment = lmdb.open(str(self.path), map_size=_FIRST_MAP_BYTES)
        except lmdb.Error as error:
            raise InputError(f"{self.path}: cannot be written as LMDB ({error})") from error
        try:
            self._ids = list(_ids(self.path, self._environment))
        except InputError:
            self._environment.close()
            raise
        self.done: set[int | str] = set(self._ids)
        self._waiting: dict[bytes, bytes] = {}
        self._waiting_bytes = 0

    def append(self, regions: Regions) -> None:
        """Adds one image.

        Raises:
            InputError: the id is empty, "keys", or longer than 511 bytes.
            OSError: the disk is full; the images that wait are tried again with the next.
        """
        image_id = parse_id(regions.image_id)
        key = _key(image_id)
        if not key or key == _LIST_KEY or len(key) > _LONGEST_KEY:
            raise InputError(
                f"image id {str(image_id)[:40]!r}: empty, 'keys' or longer than {_LONGEST_KEY} bytes; "
                "give another id in a list file"
            )
        self._waiting[key] = value = pickle.dumps(_row(regions), protocol=4)
        self._waiting_bytes += len(value)
        if image_id not in self.done:
            self._ids.append(image_id)
            self.done.add(image_id)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._store()

    def sync(self) -> None:
        """Returns when all images so far are on the disk."""
        self._store()
        sync_folder(self.path)

    def finish(self) -> None:
        """Stores the images that wait and the list of keys, which ViLBERT's readers start from."""
        self._waiting[_LIST_KEY] = pickle.dumps([_key(image_id) for image_id in self._ids], protocol=4)
        self.sync()

    def close(self) -> None:
        """Stores the images that wait, and closes the LMDB."""
        try:
            self._store()
        finally:
            self._environment.close()

    def _store(self) -> None:
        if not self._waiting:
            return
        try:
            while not self._stored():
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
        except lmdb.Error as error:
            number = errno.ENOSPC if isinstance(error, lmdb.DiskError) else errno.EIO
            raise OSError(number, str(error), str(self.path)) from error
        self._waiting.clear()
        self._waiting_bytes = 0

    def _stored(self) -> bool:
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in self._waiting.items():
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        return True


def is_lmdb(path: Path) -> bool:
    """Whether there is an LMDB, whatever is in it: a folder with one, or its file."""
    try:
        with open(path / "data.mdb" if path.is_dir() else path, "rb") as file:
            return file.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] == _MAGIC
    except OSError:
        return False


# py-lmdb opens a path once in a process, so the stores of one path share what is open. What was opened before a fork
# serves the children too: it is a mapping of the file to read from, without locks.
_open_environments: weakref.WeakValueDictionary[str, lmdb.Environment] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _open_for_reading(path: Path) -> lmdb.Environment:
    name = os.path.realpath(path)
    with _opening:
        environment = _open_environments.get(name)
        if environment is None:
            try:
                environment = lmdb.open(
                    name, subdir=path.is_dir(), map_size=0, readonly=True, lock=False, readahead=False, create=False
                )
            except lmdb.Error as error:
                raise InputError(f"{path}: cannot be read as LMDB ({error})") from error
            _open_environments[name] = environment
        return environment


def _ids(path: Path, environment: lmdb.Environment) -> Iterator[int | str]:
    """The ids in the order of the list of keys, or, where that lacks some (the writer has not come to its end), in
    the order of the keys."""
    try:
        with environment.begin() as transaction:
            listed, entries = transaction.get(_LIST_KEY), transaction.stat()["entries"]
            keys = _listed_keys(listed)
            if listed is None or len(keys) + 1 != entries:
                keys = [key for key in transaction.cursor().iternext(values=False) if key != _LIST_KEY]
            first = transaction.get(keys[0]) if keys else None
        if first is not None:
            _decode("", safe_pickle.loads(first))
    except (ValueError, lmdb.Error) as error:
        raise InputError(f"{path}: an LMDB with something else than ViLBERT's features ({error})") from error
    return (parse_id(key.decode(errors="surrogateescape")) for key in keys)


def _listed_keys(listed: bytes | None) -> list[bytes]:
    keys = [] if listed is None else safe_pickle.loads(listed)
    if not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
        raise ValueError("its keys are not a list of keys")
    return list(dict.fromkeys(keys))


def _key(image_id: int | str) -> bytes:
    return str(image_id).encode(errors="surrogateescape")


def _row(regions: Regions) -> dict[str, str]:
    row = {
        "image_id": str(regions.image_id),
        "image_w": str(regions.width),
        "image_h": str(regions.height),
        "num_boxes": str(len(regions)),
        "boxes": encode_array(regions.boxes, _FLOAT),
        "features": encode_array(regions.features, _FLOAT),
    }
    for field, (attribute, dtype) in LABELS.items():
        labels = getattr(regions, attribute)
        if labels is not None:
            row[field] = encode_array(labels, dtype)
    return row


def _decode(image_id: int | str, row) -> Regions:
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} instead of a row")
    missing = {"image_w", "image_h", "num_boxes", "boxes", "features"} - row.keys()
    if missing:
        raise ValueError(f"{min(missing)}: missing")
    # vilbert-multi-task counts its best boxes alone in num_boxes, and reads as many as there are.
    count = len(row["features"]) if isinstance(row["features"], np.ndarray) else _integer(row, "num_boxes")
    labels = {
        attribute: _array(row, field, dtype, (count,)) for field, (attribute, dtype) in LABELS.items() if field in row
    }
    return Regions(
        image_id=image_id,
        width=_integer(row, "image_w"),
        height=_integer(row, "image_h"),
        boxes=_array(row, "boxes", _FLOAT, (count, 4)),
        features=_array(row, "features", _FLOAT, (count, -1) if count else (0, 0)),
        **labels,
    )


def _array(row: dict, field: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    value = row[field]
    if not isinstance(value, np.ndarray):
        return decode_array(value, dtype, shape, field)
    try:
        return value.astype(dtype).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{field}: {value.shape} does not fit {shape[0]} boxes") from error


def _integer(row: dict, field: str) -> int:
    try:
        return int(row[field])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{field}: {str(row[field])[:20]!r} is not a number") from error
