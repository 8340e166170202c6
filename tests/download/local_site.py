"""A local web server that serves files, and misbehaves when it is told to."""

import hashlib
import io
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Site:
    """A web server.

    Attributes:
        url: Its address.
        files: Content by path.
        answers: By path, how the next requests are answered, the first first; later ones are answered as they should.
        requests: The paths and headers of the requests that came.
        released: Set at the end, so that requests that are kept waiting end.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        self.requests.append((path, dict(handler.headers)))
        if path not in self.files:
            handler.send_error(404)
        elif self.answers[path]:
            self.answers[path].pop(0)(handler, self.files[path])
        else:
            send(handler, self.files[path])

    def ranges(self, path: str) -> list[str | None]:
        """Returns the ranges that were asked for."""
        return [headers.get("Range") for name, headers in self.requests if name == path]


def send(
    handler: BaseHTTPRequestHandler,
    data: bytes,
    *,
    cut: int | None = None,
    ranges: bool = True,
    if_range: bool = True,
    tag: str | None = "",
    length: int | None = None,
    kept_waiting: threading.Event | None = None,
) -> None:
    """Sends a file.

    Args:
        cut: Number of bytes of the body after which the connection is cut.
        ranges: Whether a range is sent if it is asked for.
        if_range: Whether the condition of a range is checked.
        tag: The ETag; by default one made of the content, None for none.
        length: The size that is claimed; by default the true one.
        kept_waiting: What is waited for before the connection is cut.
    """
    tag = f'"{hashlib.md5(data).hexdigest()}"' if tag == "" else tag
    wanted = handler.headers.get("Range")
    same = not if_range or handler.headers.get("If-Range") in (None, tag)
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and ranges and same else 0
    body, whole = data[start:], len(data) if length is None else length
    if start >= len(data) > 0:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{whole}")
    if tag is not None:
        handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(whole - start))
    handler.end_headers()
    handler.wfile.write(body if cut is None else body[:cut])
    handler.wfile.flush()
    if kept_waiting is not None:
        kept_waiting.wait()
    handler.close_connection = True


def sending(**how) -> Answer:
    """Returns an answer that sends the file in one of the ways of ``send``."""
    return partial(send, **how)


def refusing(code: int) -> Answer:
    return lambda handler, data: handler.send_error(code)


def silent(until: threading.Event) -> Answer:
    """Returns an answer that never comes."""
    return lambda handler, data: until.wait() and None


def raw(data: bytes, *, repeated: bytes = b"", every: float = 0.0, until: threading.Event | None = None) -> Answer:
    """Returns an answer that is sent as it is, without a look at the request.

    Args:
        repeated: What is sent again and again afterwards, as long as the connection lasts.
        every: Seconds between two of them.
        until: Ends the answer when it is set.
    """

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.close_connection = True
        with suppress(OSError):  # the other side hung up
            handler.wfile.write(data)
            while repeated and not (until is not None and until.wait(every)):
                handler.wfile.write(repeated)

    return answer


@contextmanager
def local_site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def zipped(files: dict[str, bytes]) -> bytes:
    """Returns a zip archive of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
