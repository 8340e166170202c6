"""Reads and writes features in LMDB databases in the layout of ViLBERT.

The key of an image is its id as text. The value is a pickled dictionary with the columns of the original's TSV
(script/convert_trainval_lmdb.py of jiasenlu/vilbert_beta): ``image_id``, ``image_w``, ``image_h``, ``num_boxes``,
``boxes`` and ``features``, all of them text, and the last two base64 of float32. bua adds the labels under LXMERT's
names, which ViLBERT's readers ignore: ``objects_id``, ``attrs_id`` (int64), ``objects_conf``, ``attrs_conf`` (float32),
also in base64. The key ``keys`` has the pickled list of all keys.

``bua.features.lmdb_rows`` has the fields that other readers expect, and ``bua.features.lmdb_values`` reads what other
programs write.
"""

import errno
import mmap
import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import lmdb

from bua.errors import InputError, make_folder
from bua.features.checks import check_regions
from bua.features.ids import parse_id
from bua.features.indexed import IndexedFeatures
from bua.features.lmdb_pages import check_pages
from bua.features.lmdb_rows import ROWS
from bua.features.lmdb_values import UNITER_LIST_KEY, decode_value, uniter_keys
from bua.io import safe_pickle
from bua.io.files import check_in_place, sync_folder
from bua.regular_files import open_regular
from bua.structures import Regions

_LIST_KEY = b"keys"
_LONGEST_KEY = 511

# Images are stored in large batches, since each transaction waits for the disk twice.
_BATCH_BYTES = 32 << 20
_FIRST_MAP_BYTES = 1 << 30
# The size of lock.mdb for 126 readers.
_LOCK_BYTES = 8192

# The magic number after the header of the first page of an LMDB file, on little-endian machines.
_MAGIC, _MAGIC_OFFSET = b"\xde\xc0\xef\xbe", 16


class LmdbFeatures(IndexedFeatures[bytes]):
    """The features in an LMDB of ViLBERT, vilbert-multi-task, Volta, MMF or UNITER, a folder or a single file, as they
    are when it is opened.

    Many processes and threads can read from the same object, also after it was forked or pickled to them.

    Raises:
        InputError: When it is opened: the path is not such an LMDB. When an image is read: a field cannot be decoded;
            the message names the image and the field.
    """

    format = "vilbert-lmdb"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            check_pages(_data_file(self.path))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{self.path}: {error}; copy it again, or extract the features again") from error
        self._environment = _open_for_reading(self.path)
        self._keys_name, self._places = _places(self.path, self._environment)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_environment": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _environment=_open_for_reading(state["path"]))

    def _read(self, image_id: int | str, place: bytes) -> Regions:
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(place)
        except lmdb.Error as error:
            raise InputError(f"{self.path}: image {image_id}: cannot be read ({error}); open the file again") from error
        try:
            if value is None:
                raise ValueError("is in the list of keys, but has no entry")
            return decode_value(image_id, value, self._note, uniter=self._keys_name == UNITER_LIST_KEY)
        except ValueError as error:
            raise InputError(f"{self.path}: image {image_id}: {error}; extract this image again") from error


class LmdbWriter:
    """Adds images to an LMDB in a folder, for the reader that is named, or else for ViLBERT's.

    Images are kept in memory until there are 32 MB of them, or until ``sync``, and are then stored in one transaction.
    LMDB guarantees that a transaction is on the disk completely or not at all, even if the process is killed or the
    machine crashes; its faster and less safe modes are not used. If the process is killed, the images in memory are
    lost, and are not in ``done`` of the next writer.

    Args:
        path: The folder, which is created if it does not exist.
        reader: One of the readers of ``bua.features.lmdb_rows.ROWS``.

    Attributes:
        done: Ids of the images in the LMDB.

    Raises:
        InputError: The path holds something else, or is open in this process.
    """

    def __init__(self, path: str | Path, reader: str | None = None):
        self.path = Path(path)
        self._row_bytes = ROWS[reader]
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; vilbert-lmdb is written into a folder")
        # A writer that was killed right after its start leaves empty files with these names.
        if self.path.exists() and {entry.name for entry in self.path.iterdir()} - {"data.mdb", "lock.mdb"}:
            raise InputError(f"{self.path}: holds something other than an LMDB; choose another output")
        data = make_folder(self.path) / "data.mdb"
        if data.exists():
            open_regular(data).close()  # LMDB would wait for a named pipe
        _reserve_locks(self.path / "lock.mdb")
        try:
            if data.exists() and data.stat().st_size < 2 * mmap.PAGESIZE and is_lmdb(data):
                # On a full disk, a writer wrote one of the two pages without which LMDB stores nothing.
                os.truncate(data, 0)
            if data.exists() and data.stat().st_size:
                check_pages(data, writing=True)
            self._environment = lmdb.open(os.fsencode(self.path), map_size=_FIRST_MAP_BYTES)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}; choose another output, or remove this one") from error
        except lmdb.DiskError as error:
            raise OSError(errno.ENOSPC, str(error), str(self.path)) from error
        except lmdb.Error as error:
            raise InputError(f"{self.path}: cannot be written as LMDB ({error})") from error
        try:
            keys_name, places = _places(self.path, self._environment)
            if keys_name != _LIST_KEY:
                raise InputError(f"{self.path}: is an LMDB of UNITER; choose another output")
            self._ids = list(places)
        except InputError:
            self._environment.close()
            raise
        self._data_file, self._file = data, os.open(data, os.O_RDONLY)
        self._failed = False
        self.done: set[int | str] = set(self._ids)
        self._waiting: dict[bytes, bytes] = {}
        self._waiting_bytes = 0

    def append(self, regions: Regions) -> None:
        """Adds one image.

        Raises:
            InputError: The id is empty, "keys", or longer than 511 bytes, or a number is not finite.
            OSError: The disk is full. The images in memory are written with the next one.
        """
        check_regions(regions)
        image_id = parse_id(regions.image_id)
        key = _key(image_id)
        if not key or key == _LIST_KEY or len(key) > _LONGEST_KEY:
            raise InputError(
                f"image id {str(image_id)[:40]!r}: is empty, 'keys' or longer than {_LONGEST_KEY} bytes; "
                "give another id in a list file"
            )
        self._waiting[key] = value = self._row_bytes(regions)
        self._waiting_bytes += len(value)
        if image_id not in self.done:
            self._ids.append(image_id)
            self.done.add(image_id)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._store()

    def sync(self) -> None:
        """Stores all images so far, and syncs them to the disk."""
        check_in_place(self._data_file, self._file)
        self._store()
        sync_folder(self.path)

    def finish(self) -> None:
        """Stores the images in memory, and the list of keys, which ViLBERT's readers need."""
        self._waiting[_LIST_KEY] = pickle.dumps([_key(image_id) for image_id in self._ids], protocol=4)
        self.sync()

    def close(self) -> None:
        """Stores the images in memory, unless storing them has just failed, and closes the LMDB."""
        try:
            if not self._failed:
                self._store()
        finally:
            self._environment.close()
            os.close(self._file)

    def _store(self) -> None:
        if not self._waiting:
            return
        try:
            while not self._store_waiting():
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
        except lmdb.Error as error:
            self._failed = True
            number = errno.ENOSPC if isinstance(error, lmdb.DiskError) else errno.EIO
            raise OSError(number, str(error), str(self.path)) from error
        self._failed = False
        self._waiting.clear()
        self._waiting_bytes = 0

    def _store_waiting(self) -> bool:
        """Stores the images in memory. Returns False if the map of the LMDB is too small for them."""
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in self._waiting.items():
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        return True


def is_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB, a folder or a single file, with any content."""
    try:
        with open_regular(_data_file(path)) as file:
            return file.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] == _MAGIC
    except OSError:
        return False


def _data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _reserve_locks(path: Path) -> None:
    """Creates the file of LMDB's locks. LMDB maps it without reserving its space, and would be killed by SIGBUS if the
    disk is full."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing alone, a named pipe would be waited for
    try:
        os.posix_fallocate(file, 0, _LOCK_BYTES)
    finally:
        os.close(file)


# py-lmdb can open a path only once per process, so that the stores of the same path share an environment. Forked
# processes can use an inherited environment: it is a mapping of the file for reading, without locks.
_open_environments: weakref.WeakValueDictionary[str, lmdb.Environment] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _open_for_reading(path: Path) -> lmdb.Environment:
    name = os.path.realpath(path)
    with _opening:
        environment = _open_environments.get(name)
        if environment is None:
            try:
                environment = lmdb.open(
                    os.fsencode(name),
                    subdir=path.is_dir(),
                    map_size=0,
                    readonly=True,
                    lock=False,
                    readahead=False,
                    create=False,
                )
            except lmdb.Error as error:
                raise InputError(f"{path}: cannot be read as LMDB ({error})") from error
            _open_environments[name] = environment
        return environment


def _places(path: Path, environment: lmdb.Environment) -> tuple[bytes, dict[int | str, bytes]]:
    """Returns the key of the list of keys, and the key of each image by its id, in the order of the list.

    If the list is incomplete because the writer has not finished, they are in the order of the keys.
    """
    try:
        with environment.begin() as transaction:
            listed, entries = transaction.get(_LIST_KEY), transaction.stat()["entries"]
            keys_name = _LIST_KEY
            if listed is None and (names := transaction.get(UNITER_LIST_KEY)) is not None:
                keys_name, keys = UNITER_LIST_KEY, uniter_keys(names)
            else:
                keys = _listed_keys(listed)
                if listed is None or len(keys) + 1 != entries:
                    keys = [key for key in transaction.cursor().iternext(values=False) if key != _LIST_KEY]
            first = transaction.get(keys[0]) if keys else None
        uniter = keys_name == UNITER_LIST_KEY
        if first is not None:
            decode_value("", first, lambda message: None, uniter)
    except (ValueError, lmdb.Error) as error:
        raise InputError(f"{path}: is an LMDB without features of a known program ({error}); name another") from error
    suffix = ".npz" if uniter else ""
    return keys_name, {parse_id(key.decode(errors="surrogateescape").removesuffix(suffix)): key for key in keys}


def _listed_keys(listed: bytes | None) -> list[bytes]:
    keys = [] if listed is None else safe_pickle.loads(listed)
    if not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
        raise ValueError("its entry 'keys' is not a list of keys")
    return list(dict.fromkeys(keys))


def _key(image_id: int | str) -> bytes:
    return str(image_id).encode(errors="surrogateescape")
