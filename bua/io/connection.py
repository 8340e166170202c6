"""One request over HTTP, of which nothing is believed: its time, its redirections and its answer have limits."""

import functools
import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any

from bua.errors import InputError
from bua.terminal import printable

if sys.version_info >= (3, 11):
    import httpx2 as httpx
else:  # httpx2, which continues httpx, needs Python 3.11
    import httpx

# A connection that brings fewer bytes per second counts as cut.
SLOWEST = 1000
_MAX_REDIRECTS = 10
# Answers of a server that may be different a little later.
_PASSING = {408, 416, 425, 429, 500, 502, 503, 504}

# They tell of each request, with the server's words as they came, which may hold commands for a terminal. Levels that
# were set before stay.
for _name in ("httpx", "httpx2"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.WARNING)


class Cut(Exception):
    """Raised when one try ends before the end of the file, and another one may succeed.

    The message is the reason, in which the server's words cannot act on a terminal. ``status`` is the answer's status
    code if that is the reason.
    """

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(printable(reason))
        self.status = status


def check_address(url: str) -> None:
    """Checks that an address can be asked for.

    Raises:
        InputError: It is malformed, or it is not an address with http or https.
    """
    try:
        parsed = httpx.URL(url)
        usable = url.isprintable() and parsed.scheme in ("http", "https") and 0 < (parsed.port or 1) < 1 << 16
        # What belongs to no name of a host is percent-encoded by httpx.
        usable = usable and bool(parsed.host) and "%" not in parsed.host
        parsed.raw_host.decode().encode("idna")  # as the system's look-up of a host does
    except (httpx.InvalidURL, UnicodeError):  # UnicodeErrors are raised for names of hosts
        usable = False
    if not usable:
        raise InputError(f"{url[:200]!r}: is not an address with http or https, a host and a path; correct it")


class TooSlow(Cut):
    """Raised when a try ends because nearly nothing came for too long."""


class Answer:
    """The answer of a server to a request for a file.

    Attributes:
        status: The status code, 200 or 206.
        headers: The headers, by names in any case.
        length: The number of bytes that the server promises, if it does.
        ends_visibly: Whether the end of the file can be told from a cut connection.
    """

    def __init__(self, response: httpx.Response, watch: "_Watch"):
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        length = response.headers.get("Content-Length", "")
        self.length = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        self.ends_visibly = (
            self.length is not None or "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        )
        self._response = response
        self._watch = watch

    def blocks(self) -> Iterator[bytes]:
        """Yields what arrives as it arrives, without decompressing it.

        Raises:
            Cut: The connection was cut, except where that is seen by ``length``; or it is too slow.
        """
        try:
            for block in self._response.iter_raw():
                self._watch.progress(len(block))
                yield block
        except httpx.RemoteProtocolError as error:
            if self.length is None and not self._watch.is_over:
                raise Cut(_reason(error)) from error
        self._watch.check()


@contextmanager
def answer(url: str, headers: Mapping[str, str], timeout: float, allow_downgrade: bool) -> Iterator[Answer]:
    """Asks for a file.

    Proxies are taken from the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...), certificates from the system or from
    ``SSL_CERT_FILE``.

    Args:
        url: An address with http or https.
        timeout: The connection counts as cut if it brings fewer than ``SLOWEST * timeout`` bytes in this many seconds.
        allow_downgrade: Whether a redirection may lead from https to http.

    Raises:
        InputError: The address cannot be asked for, the server refuses, or it redirects to an address that cannot be
            asked for.
        Cut: The try failed.
    """
    check_address(url)
    with _Watch(timeout) as watch, _client(url, timeout) as client:
        try:
            request = client.build_request("GET", url, headers=dict(headers), extensions={"trace": watch.trace})
            with _final_response(client, request, url, watch, allow_downgrade) as response:
                yield Answer(response, watch)
        except httpx.HTTPError as error:
            watch.check()
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise InputError(
                    f"{url}: the server's certificate is not valid ({_reason(error)}); if your network has its own "
                    "certificates, name their file in SSL_CERT_FILE"
                ) from error
            raise Cut(_reason(error)) from error


@contextmanager
def _final_response(
    client: httpx.Client, request: httpx.Request, url: str, watch: "_Watch", allow_downgrade: bool
) -> Iterator[httpx.Response]:
    """Follows redirections. What comes with them is not read, since it may be endless."""
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            response = client.send(request, stream=True)
        except UnicodeError as error:  # a cookie or an address in the answer cannot be sent back
            raise Cut(f"the server's answer is malformed: {_reason(error)}") from error
        try:
            if not response.has_redirect_location:
                _check_status(response, url)
                yield response
                return
        finally:
            response.close()
        if response.next_request is None:
            raise InputError(f"{url}: the server redirects to an address that is malformed; get the file elsewhere")
        request = response.next_request
        goal = str(request.url)
        try:
            check_address(goal)
        except InputError as error:
            raise InputError(f"{url}: the server redirects to {error}") from error
        if response.url.scheme == "https" and request.url.scheme == "http" and not allow_downgrade:
            raise InputError(
                f"{url}: the server redirects to {goal[:200]}, which is not encrypted, and no checksum of the file is "
                "known; get the file elsewhere"
            )
        watch.restart()
    raise InputError(f"{url}: the server redirects more than {_MAX_REDIRECTS} times; get the file elsewhere")


def _check_status(response: httpx.Response, url: str) -> None:
    if response.status_code in (200, 206):
        return
    says = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in _PASSING:
        raise Cut(says, response.status_code)
    raise InputError(f"{url}: the server refuses ({says}); get the file from another place")


def _client(url: str, timeout: float) -> httpx.Client:
    try:
        certificates = _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        return httpx.Client(timeout=timeout, verify=certificates)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # ImportError: proxies with SOCKS need a package
        raise InputError(f"{url}: the proxy of the environment cannot be used ({_reason(error)})") from error


@functools.cache
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Returns the system's certificates, or those that the two variables of the environment name: reading them takes
    longer than a request, and the default of httpx is different in each of its versions."""
    return ssl.create_default_context()


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Watch:
    """Cuts connections that bring fewer than ``SLOWEST * timeout`` bytes within ``timeout`` seconds.

    The time limit of a socket starts anew with each byte, and httpx waits for whole lines. So a server that sends one
    byte of a header now and then would hold the process for days.
    """

    def __init__(self, timeout: float):
        self.is_over = False
        self._timeout = timeout
        self._sockets: list[socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch of a download", daemon=True)
        self._until = 0.0
        self._arrived = 0

    def __enter__(self) -> "_Watch":
        self.restart()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for connection in self._sockets:
            connection.close()

    def restart(self) -> None:
        """Starts the time for a connection and the headers of an answer."""
        # Connecting has a time limit of its own.
        self._until = time.monotonic() + 2 * self._timeout
        self._arrived = 0

    def progress(self, size: int) -> None:
        """Says that bytes of the file arrived."""
        self._arrived += size
        if self._arrived >= SLOWEST * self._timeout:
            self._until = time.monotonic() + self._timeout
            self._arrived = 0

    def check(self) -> None:
        """Raises TooSlow if the time was over, in which case what was read may end early without an error."""
        if self.is_over:
            raise TooSlow(f"fewer than {SLOWEST} bytes per second came for {self._timeout:g} seconds")

    def trace(self, event: str, about: Mapping[str, Any]) -> None:
        """Is called by httpx with what happens to a request."""
        if event == "connection.connect_tcp.complete":
            # A duplicate, because the original moves into another object where the connection is encrypted.
            self._sockets.append(about["return_value"].get_extra_info("socket").dup())

    def _run(self) -> None:
        while not self._ended.wait(max(0.0, self._until - time.monotonic())):
            if time.monotonic() < self._until:
                continue
            self.is_over = True
            # A connection that is made in this moment is cut in the next round.
            for connection in list(self._sockets):
                with suppress(OSError):  # it is not connected any more
                    connection.shutdown(SHUT_RDWR)
            self._until = time.monotonic() + 0.1
