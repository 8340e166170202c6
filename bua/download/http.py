"""Fetches a file over HTTP: goes on where it was cut, and checks its size and its checksum.

While a file arrives, it is called ``<name>.part``. Beside it, ``<name>.part.json`` holds what the server said about the
file: its validator (the ETag, or the date of the last change) and its size. The next try asks for the rest only on the
condition that the validator is still the same (If-Range), so that parts of two versions are never joined.
"""

import hashlib
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from bua.download.space import NoSpace, free_space, readable, writing
from bua.errors import InputError, make_folder
from bua.io.files import exclusive, whole_file

TIMEOUT = 60.0
# Tries in a row that bring no further byte, and the wait after the first of them in seconds, which doubles each time.
ATTEMPTS = 6
WAIT = 1.0
_LONGEST_WAIT = 60.0
_BLOCK = 1 << 20
# Answers of a server that may be different a little later.
_PASSING = {408, 416, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

logger = logging.getLogger(__name__)


def fetch(
    url: str,
    target: str | Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    wait: float = WAIT,
    progress: bool = True,
) -> Path:
    """Fetches a file, unless it is there and complete.

    If the connection is cut, or if the server does not answer, it is tried again, and the file goes on where it was
    cut. It also goes on there after Ctrl-C, when this function is called again. A file of another size or with another
    checksum than the given ones is replaced.

    Args:
        url: An address with http or https.
        target: The file to write. Its folder is created.
        size: The size that the file must have, in bytes.
        checksum: "sha256:", "md5:" or "git:" (the id that git gives to a file) and the hexadecimal number that the file
            must have.
        timeout: Seconds without a byte after which the connection counts as cut.
        attempts: Number of tries in a row without a further byte after which it is given up.
        wait: Seconds to wait after the first such try; the wait doubles with each further one.
        progress: Whether to show a progress bar, if standard error is a terminal.

    Returns:
        ``target``.

    Raises:
        InputError: The server refuses, or does not answer; the file has another size or checksum; the disk is full; or
            another process fetches the same file. The message names the address or the file.
    """
    target = Path(target)
    make_folder(target.parent)
    with exclusive(target):
        if target.is_file():
            reason = _difference(target, size, checksum, progress)
            if reason is None:
                return target
            logger.warning("%s: %s; it is fetched again", target, reason)
        partial = _Partial(target, url)
        for _ in range(2):
            continued = _receive_all(partial, size, timeout, attempts, wait, progress)
            reason = _difference(partial.path, size, checksum, progress)
            if reason is None:
                partial.finish(target)
                return target
            partial.discard()
            if not continued:
                break
            logger.warning("%s: %s; it is fetched once more, from its start", url, reason)
    raise InputError(f"{url}: what arrived is not the published file: {reason}; get that file from another place")


def file_checksum(path: str | Path, kind: str, progress: bool = False) -> str:
    """Returns the checksum of a file as a hexadecimal number.

    Args:
        kind: "sha256", "md5" or "git", the id that git gives to a file.
        progress: Whether to show a progress bar, if standard error is a terminal.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % size)
    with open(path, "rb") as file, _bar(f"checking {path.name}", size, 0, progress) as bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


class _Cut(Exception):
    """Raised when one try ends before the end of the file. The message is the reason."""


class _Partial:
    """A file that has arrived in part, and what the server said about it."""

    def __init__(self, target: Path, url: str):
        self.path = target.with_name(f"{target.name}.part")
        self.url = url
        self._about = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def about(self) -> dict[str, Any]:
        """Returns the "validator" and the "size" of the file whose beginning is there; empty if it cannot go on."""
        try:
            about = json.loads(self._about.read_text())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) and about.get("url") == self.url and about.get("validator") else {}

    def start(self, validator: str | None, size: int | None) -> None:
        """Notes what the server says about a file that arrives from its start."""
        self.path.unlink(missing_ok=True)
        with whole_file(self._about) as file:
            file.write(json.dumps({"url": self.url, "validator": validator, "size": size}).encode())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        self._about.unlink(missing_ok=True)


def _receive_all(
    partial: _Partial, size: int | None, timeout: float, attempts: int, wait: float, progress: bool
) -> bool:
    """Receives the rest of a file in as many tries as it takes.

    Returns:
        Whether the file was put together from more than one try.
    """
    failures, farthest, continued = 0, partial.size(), False
    while True:
        try:
            return _receive(partial, size, timeout, progress) or continued
        except _Cut as error:
            reason = str(error)
        have = partial.size()
        continued = continued or have > 0
        failures = 0 if have > farthest else failures + 1
        farthest = max(farthest, have)
        if failures >= attempts:
            kept = f"; {readable(have)} are kept, and the same command goes on there" if have else ""
            raise InputError(f"{partial.url}: cannot be fetched ({reason}){kept}; try again later")
        logger.warning("%s: %s; trying again", partial.url, reason)
        time.sleep(min(wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))


def _receive(partial: _Partial, size: int | None, timeout: float, progress: bool) -> bool:
    """Receives a file in one try: the rest of it where that is possible, else all of it.

    Returns:
        Whether a beginning that was there was used.
    """
    about, offset = partial.about(), partial.size()
    if about and offset and offset == about["size"]:
        return True
    headers = {"User-Agent": "bua", "Accept-Encoding": "identity"}
    if about and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": about["validator"]}
    try:
        with urllib.request.urlopen(urllib.request.Request(partial.url, headers=headers), timeout=timeout) as response:
            is_rest = response.status == 206
            if is_rest:
                _check_rest(partial, response, about, offset)
            total = about["size"] if is_rest else _length(response)
            # What has arrived stays: this may be the page of a hotel's network, instead of the file.
            if size is not None and total is not None and total != size:
                raise InputError(
                    f"{partial.url}: has {total} bytes according to the server, but the published file has {size}; get "
                    "that file from another place"
                )
            if not is_rest:
                offset = 0
                with writing(partial.path):
                    partial.start(_validator(response), total)
            _write(partial, response, offset, size if total is None else total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            partial.discard()
        if error.code not in _PASSING:
            raise InputError(
                f"{partial.url}: the server refuses ({error.code} {error.reason}); get the file from another place"
            ) from error
        raise _Cut(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise _Cut(str(reason) or type(error).__name__) from error
    return offset > 0


def _check_rest(partial: _Partial, response: http.client.HTTPResponse, about: dict[str, Any], offset: int) -> None:
    """Checks that an answer 206 is the rest that was asked for, of the file whose beginning is there."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    starts = found is not None and int(found[1]) == offset
    same_size = found is not None and found[2] in ("*", str(about.get("size")))
    if not starts or not same_size or _validator(response) not in (None, about.get("validator")):
        partial.discard()
        raise _Cut("the server sent another part or another file than was asked for")


def _write(
    partial: _Partial, response: http.client.HTTPResponse, offset: int, size: int | None, progress: bool
) -> None:
    """Appends what arrives to the file. ``size`` is the size of the whole file, as far as it is known."""
    if size is not None and (missing := size - offset - free_space(partial.path)) > 0:
        raise NoSpace(f"{partial.path}: {readable(missing)} of disk space are missing; free them, and try again")
    name = partial.path.name.removesuffix(".part")
    with writing(partial.path):
        file = open(partial.path, "ab", buffering=0)  # noqa: SIM115, so that errors of the network are told apart
    with file, _bar(name, size, offset, progress) as bar:
        # read1 returns what has arrived, so that it is on the disk when the connection is cut.
        while block := response.read1(_BLOCK):
            offset += len(block)
            if size is not None and offset > size:
                raise _Cut(f"more than {size} bytes came")
            bar.update(len(block))
            with writing(partial.path):
                while block:
                    block = block[file.write(block) :]
    if size is not None and offset < size:
        raise _Cut(f"the connection was cut after {offset} of {size} bytes")


def _difference(path: Path, size: int | None, checksum: str | None, progress: bool) -> str | None:
    """Returns how a file differs from what it must be; None if it does not."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"it has {found} bytes instead of {size}"
    if checksum is not None:
        kind, _, number = checksum.partition(":")
        if file_checksum(path, kind, progress) != number:
            return f"its checksum is not {checksum}"
    return None


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Returns what tells versions of a file apart: the ETag if it is a strong one, or the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _bar(name: str, total: int | None, done: int, progress: bool) -> "tqdm[NoReturn]":
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: unless standard error is a terminal
    )
