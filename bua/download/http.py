"""Fetches a file over HTTP: goes on where it was cut, and checks its size and its checksum.

While a file arrives, it is called ``<name>.part``. Beside it, ``<name>.part.json`` holds what the server said about the
file: its validator (the ETag, or the date of the last change) and its size. The next try asks for the rest only on the
condition that the validator is still the same (If-Range), so that parts of two versions are never joined.
"""

import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tqdm import tqdm

from bua.download.space import NoSpace, free_space, readable, writing
from bua.errors import InputError, make_folder
from bua.io.connection import SLOWEST, Answer, Cut, TooSlow, answer, check_address
from bua.io.files import exclusive, whole_file
from bua.regular_files import read_regular

TIMEOUT = 60.0
# Tries in a row that bring nearly nothing, and the wait after the first of them in seconds, which doubles each time.
ATTEMPTS = 6
WAIT = 1.0
# More bytes than any file of a data set has. A server may promise, and send, any number.
MAX_SIZE = 200_000_000_000
_LONGEST_WAIT = 60.0
# A try that brings fewer bytes counts as one that brings none.
_LEAST = 1000
_BLOCK = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)

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
    max_size: int = MAX_SIZE,
    progress: bool = True,
) -> Path:
    """Fetches a file, unless it is there and complete.

    If the connection is cut, or if the server does not answer, it is tried again, and the file goes on where it was
    cut. It also goes on there after Ctrl-C, when this function is called again. A file of another size or with another
    checksum than the given ones is replaced; where no checksum is given, so is a web page or an empty file.

    Args:
        url: An address with http or https.
        target: The file to write. Its folder is created.
        size: The size that the file must have, in bytes.
        checksum: "sha256:", "md5:" or "git:" (the id that git gives to a file) and the hexadecimal number that the file
            must have, or its first digits.
        timeout: Seconds without an answer, or with fewer than 1000 bytes per second, after which the connection counts
            as cut.
        attempts: Number of tries in a row that bring nearly nothing after which it is given up.
        wait: Seconds to wait after the first such try; the wait doubles with each further one.
        max_size: The number of bytes that the file has at most.
        progress: Whether to show a progress bar, if standard error is a terminal.

    Returns:
        ``target``.

    Raises:
        InputError: The address cannot be used; the server refuses, or does not answer; the file has another size or
            checksum, or is a web page; the disk is full; or another process fetches the same file. The message names
            the address or the file.
    """
    check_address(url)
    target = Path(target)
    make_folder(target.parent)
    wanted = _Wanted(url, size, checksum, timeout, max_size, progress)
    with exclusive(target):
        if target.is_file():
            reason = wanted.difference(target)
            if reason is None:
                return target
            logger.warning("%s: %s; it is fetched again", target, reason)
        if checksum is None and url.lower().startswith("http:"):
            logger.warning(
                "%s: is fetched without encryption, and no checksum of it is known, so that a change on the way would "
                "not be noticed",
                url,
            )
        partial = _Partial(target, url)
        for _ in range(2):
            continued = _receive_all(partial, wanted, attempts, wait)
            reason = wanted.difference(partial.path)
            if reason is None:
                with writing(target):
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


def is_web_page(path: str | Path) -> bool:
    """Returns whether a file begins as a web page, such as the message of a server that does not have the file."""
    with open(path, "rb") as file:
        return _WEB_PAGE.match(file.read(1000)) is not None


class _Wanted(NamedTuple):
    """The file that is wanted, as the arguments of ``fetch`` describe it."""

    url: str
    size: int | None
    checksum: str | None
    timeout: float
    max_size: int
    progress: bool

    def difference(self, path: Path) -> str | None:
        """Returns how a file differs from what it must be; None if it does not."""
        found = path.stat().st_size
        if self.size is not None and found != self.size:
            return f"it has {found} bytes instead of {self.size}"
        if self.checksum is not None:
            kind, _, number = self.checksum.partition(":")
            return (
                None
                if file_checksum(path, kind, self.progress).startswith(number)
                else (f"its checksum is not {self.checksum}")
            )
        if found == 0 and self.size is None:
            return "it is empty"
        return "it is a web page" if path.suffix not in (".html", ".htm") and is_web_page(path) else None

    def check(self, reply: Answer, total: int | None) -> None:
        """Checks what the server says about the file, before anything of it is written.

        What had arrived before stays: this may be the page of a hotel's network, instead of the file.

        Raises:
            InputError: It is another file, or its end could not be told from a cut connection.
        """
        elsewhere = "get that file from another place"
        if total is not None and self.size is not None and total != self.size:
            raise InputError(
                f"{self.url}: has {total} bytes according to the server, but the published file has {self.size}; "
                f"{elsewhere}"
            )
        if total is not None and total > self.max_size:
            raise InputError(
                f"{self.url}: has {readable(total)} according to the server, more than any such file; {elsewhere}"
            )
        encoding = reply.headers.get("Content-Encoding", "identity").lower()
        # Some servers say it of archives that are compressed themselves.
        if encoding not in ("identity", "") and not self.url.partition("?")[0].endswith((".gz", ".tgz")):
            raise InputError(f"{self.url}: the server sends it compressed ({encoding[:20]}), unasked; {elsewhere}")
        if self.checksum is not None:
            return
        if reply.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise InputError(
                f"{self.url}: the server sends a web page instead of the file; open the address in a browser, or "
                f"{elsewhere}"
            )
        if self.size is None and not reply.ends_visibly:
            raise InputError(
                f"{self.url}: the server does not say how long the file is, so that a cut one would not be noticed; "
                f"{elsewhere}"
            )


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
            about = json.loads(read_regular(self._about))
        except (OSError, ValueError, RecursionError):
            return {}
        is_usable = isinstance(about, dict) and about.get("url") == self.url and about.keys() >= {"size", "validator"}
        return about if is_usable and isinstance(about["validator"], str) and about["validator"].isprintable() else {}

    def start(self, validator: str | None, size: int | None) -> None:
        """Notes what the server says about a file that arrives from its start."""
        self.path.unlink(missing_ok=True)
        with whole_file(self._about, locked=True) as file:
            file.write(json.dumps({"url": self.url, "validator": validator, "size": size}).encode())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        self._about.unlink(missing_ok=True)


def _receive_all(partial: _Partial, wanted: _Wanted, attempts: int, wait: float) -> bool:
    """Receives the rest of a file in as many tries as it takes.

    Returns:
        Whether the file was put together from more than one try.
    """
    failures, farthest, continued = 0, partial.size(), False
    while True:
        try:
            return _receive(partial, wanted) or continued
        except Cut as error:
            reason, least = str(error), SLOWEST * wanted.timeout if isinstance(error, TooSlow) else _LEAST
        have = partial.size()
        continued = continued or have > 0
        failures = 0 if have - farthest >= least else failures + 1
        farthest = max(farthest, have)
        if failures >= attempts:
            kept = f"; {readable(have)} are kept, and the same command goes on there" if have else ""
            raise InputError(f"{partial.url}: cannot be fetched ({reason}){kept}; try again later")
        logger.warning("%s: %s; trying again", partial.url, reason)
        time.sleep(min(wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))


def _receive(partial: _Partial, wanted: _Wanted) -> bool:
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
        with answer(partial.url, headers, wanted.timeout, allow_downgrade=wanted.checksum is not None) as reply:
            is_rest = reply.status == 206
            if is_rest:
                _check_rest(partial, reply, about, offset)
            total = about["size"] if is_rest else reply.length
            wanted.check(reply, total)
            if not is_rest:
                offset = 0
                with writing(partial.path):
                    partial.start(_validator(reply), total)
            _write(partial, reply, offset, wanted.size if total is None else total, wanted)
    except Cut as error:
        if error.status == 416:
            partial.discard()
        raise
    return offset > 0


def _check_rest(partial: _Partial, reply: Answer, about: dict[str, Any], offset: int) -> None:
    """Checks that an answer 206 is the rest that was asked for, of the file whose beginning is there."""
    found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
    starts = found is not None and int(found[1]) == offset
    same_size = found is not None and found[2] in ("*", str(about.get("size")))
    if not starts or not same_size or _validator(reply) not in (None, about.get("validator")):
        partial.discard()
        raise Cut("the server sent another part or another file than was asked for")


def _write(partial: _Partial, reply: Answer, offset: int, size: int | None, wanted: _Wanted) -> None:
    """Appends what arrives to the file. ``size`` is the size of the whole file, as far as it is known."""
    if size is not None and (missing := size - offset - free_space(partial.path)) > 0:
        # Where the size is not known from the catalog, the server may claim any: other files may well fit.
        kind = InputError if wanted.size is None else NoSpace
        raise kind(f"{partial.path}: {readable(missing)} of disk space are missing; free them, and try again")
    name = partial.path.name.removesuffix(".part")
    with writing(partial.path):
        file = open(partial.path, "ab", buffering=0)  # noqa: SIM115, so that errors of the network are told apart
    with file, _bar(name, size, offset, wanted.progress) as bar:
        for block in reply.blocks():
            offset += len(block)
            if size is not None and offset > size:
                raise Cut(f"more than {size} bytes came")
            if offset > wanted.max_size:
                partial.discard()
                raise InputError(f"{partial.url}: more than {readable(wanted.max_size)} came; get the file elsewhere")
            bar.update(len(block))
            with writing(partial.path):
                while block:
                    block = block[file.write(block) :]
    if size is not None and offset < size:
        raise Cut(f"the connection was cut after {offset} of {size} bytes")


def _validator(reply: Answer) -> str | None:
    """Returns what tells versions of a file apart: the ETag if it is a strong one, or the date of the last change."""
    tags = (reply.headers.get("ETag"), reply.headers.get("Last-Modified"))
    usable = (tag for tag in tags if tag and tag.isascii() and tag.isprintable() and not tag.startswith("W/"))
    return next(usable, None)


def _bar(name: str, total: int | None, done: int, progress: bool) -> "tqdm[NoReturn]":
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: unless standard error is a terminal
    )
