"""Keeps files that were downloaded: one for each whole address, with the checksum that it had when it arrived.

``<cache>/bua/addresses/<host>-<hash of the address>/<name>`` is a file, and ``<name>.checksum`` beside it is a record
of its SHA-256, its size and the time of its last change. A file is hashed again only if the latter two differ from the
record, so that a start costs no time.
"""

import hashlib
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from bua.download import fetch
from bua.download.http import file_checksum, is_web_page
from bua.errors import InputError
from bua.io.connection import check_address
from bua.io.files import Locked, whole_file
from bua.regular_files import read_regular

ATTEMPTS = 3
WAIT = 1.0
# No weights of a detector have as many bytes.
MAX_SIZE = 20_000_000_000
# Seconds for which another process that downloads the same file is waited for.
_LONGEST_WAIT = 3600.0
_NAME_LENGTH = 100

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns the folder of downloaded files: $FVCORE_CACHE, or ~/.torch/iopath_cache as for iopath and fvcore."""
    return Path(os.path.expanduser(os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache"))


def place_of(address: str) -> Path:
    """Returns the path of the file for an address. Addresses that differ in any part have different paths.

    Args:
        address: An address with http or https.

    Raises:
        InputError: The address is malformed.
    """
    check_address(address)
    asked = address.partition("#")[0]
    parts = urlsplit(asked)
    # Only characters that mean nothing to a file system remain. The hash makes the path unique.
    folder = f"{_plain(parts.hostname or '')}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    return cache_folder() / "bua" / "addresses" / folder / (_plain(parts.path.rpartition("/")[2]) or "weights")


def is_cached(path: Path) -> bool:
    """Returns whether a file is there. Web pages and empty files, which earlier versions kept, do not count."""
    return os.path.isfile(path) and path.stat().st_size > 0 and not is_web_page(path)


def checked(path: Path, checksum: str | None = None) -> Path:
    """Returns the path of a file in the cache if the file is what was downloaded.

    A file that was put there by hand has no record, and is only compared with ``checksum``.

    Args:
        checksum: What is published of the file's checksum, as for ``bua.download.fetch``.

    Raises:
        InputError: The file has changed since it was downloaded, or has another checksum.
    """
    record = _record(path)
    about = _read(record)
    if _fits(about, path):
        return path
    expected = f"sha256:{about['sha256']}" if about else checksum
    if expected is not None:
        kind, _, number = expected.partition(":")
        if not file_checksum(path, kind, progress=True).startswith(number):
            raise InputError(
                f"{path}: is not the file that was downloaded or published ({expected}); delete it, and it is "
                "downloaded again, or give its path if it is the file that you want"
            )
        _write(record, path)
    return path


def download(address: str, path: Path, checksum: str | None = None) -> Path:
    """Downloads a file to ``path``, and records its checksum. Another process that does the same is waited for.

    Args:
        address: An address with http or https.
        checksum: As for ``checked``.

    Raises:
        InputError: The download failed.
    """
    until = time.monotonic() + _LONGEST_WAIT
    is_waiting = False
    while True:
        try:
            fetch(address, path, checksum=checksum, attempts=ATTEMPTS, wait=WAIT, max_size=MAX_SIZE)
            break
        except Locked as error:  # each process of a training asks for the same file
            if time.monotonic() > until:
                raise
            if not is_waiting:
                logger.info("%s", error)
            is_waiting = True
            time.sleep(0.2)
    # The other process may have failed or been killed, so that this one has downloaded the file.
    if not is_waiting or not _fits(_read(_record(path)), path):
        _write(_record(path), path)
    return path


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[-_NAME_LENGTH:].lstrip(".")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum")


def _read(record: Path) -> dict[str, int | str]:
    """Returns what is recorded, or an empty dictionary if there is no record, or a damaged one."""
    try:
        about = json.loads(read_regular(record))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("sha256"), str) else {}


def _fits(about: dict[str, int | str], path: Path) -> bool:
    """Returns whether a record is of the file as it is now, according to the size and the time of the last change."""
    status = path.stat()
    return about.get("size") == status.st_size and about.get("modified_ns") == status.st_mtime_ns


def _write(record: Path, path: Path) -> None:
    status = path.stat()
    about = {
        "sha256": file_checksum(path, "sha256", progress=True),
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }
    # A folder that cannot be written may hold files that others put there.
    with suppress(OSError), whole_file(record) as file:
        file.write(json.dumps(about).encode())
