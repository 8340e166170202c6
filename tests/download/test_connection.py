"""What hostile and broken servers answer is one line, and nothing of it is kept."""

import ssl
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from local_site import raw, sending

from bua.download import fetch
from bua.errors import InputError
from bua.io import connection

DATA = bytes(range(256)) * 100
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: "
PAGE = b"<!DOCTYPE html>\n<html>This file is gone.</html>"

quick = partial(fetch, timeout=300, attempts=2, wait=0, progress=False)


def serve(site, *answers, data=DATA) -> str:
    site.files["file.bin"] = data
    site.answers["file.bin"] += answers
    return site.url + "file.bin"


def sized(data: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([OK.rstrip(), b"Content-Length: %d" % len(data), *headers, b"", data])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (raw(REDIRECT + b"file:///etc/passwd\r\n\r\n"), "redirects to 'file://.*etc/passwd': is not an address"),
        (raw(REDIRECT + b"ftp://127.0.0.1/file.bin\r\n\r\n"), "redirects to 'ftp://.*': is not an address"),
        (raw(REDIRECT + b"http://127.0.0.1:99999/\r\n\r\n"), "redirects to .*99999/': is not an address"),
        (raw(REDIRECT + b"http://" + b"a" * 64 + b".com/\r\n\r\n"), "redirects to 'http://a.*com/': is not an address"),
        (raw(REDIRECT + b"http://[::1\r\n\r\n"), "redirects to an address that is malformed"),
        (raw(sized(PAGE, b"Content-Type: text/html; charset=utf-8")), "sends a web page instead of the file"),
        (raw(sized(b"\n" + PAGE.lower())), "not the published file: it is a web page"),
        (raw(sized(b"")), "not the published file: it is empty"),
        (raw(sized(DATA, b"Content-Encoding: gzip")), r"sends it compressed \(gzip\), unasked"),
        (raw(OK + b"\r\n" + DATA), "does not say how long the file is"),
        (raw(OK + b"Content-Length: 1000000000000000\r\n\r\n"), "has 1000000 GB according to the server, more than"),
        (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), r"the server refuses \(204 No Content\)"),
        (raw(b"HTTP/1.1 302 Found\r\n\r\n"), r"the server refuses \(302 Found\)"),
    ],
)
def test_another_answer_than_the_file_is_final(site, target, answer, message):
    with pytest.raises(InputError, match=message) as error:
        quick(serve(site, answer), target)
    assert "\n" not in str(error.value)
    assert list(target.parent.iterdir()) == []
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\xff" * 100,
        b"HTTP/1.1 2\xb200 OK\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        OK + b"X: " + b"x" * 2_000_000 + b"\r\n\r\n",
        CHUNKED + b"5\r\nabcde\r\n",
        CHUNKED + b"zz\r\nabcde\r\n",
        REDIRECT + b"/file.bin\r\nSet-Cookie: a=\xaa\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/" + b"9" * 5000 + b"\r\nContent-Length: 5\r\n\r\nabcde",
    ],
)
def test_a_malformed_answer_is_one_line(site, target, answer):
    with pytest.raises(InputError, match=r"file\.bin: cannot be fetched \(.+\)") as error:
        quick(serve(site, *[raw(answer)] * 9), target)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK, b"X"),
        (CHUNKED + b"1", b";x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
    ],
)
def test_a_server_that_sends_nearly_nothing_is_given_up(site, target, monkeypatch, start, repeated):
    """Each byte would start the time limit of a socket anew, which here is so long that it never ends a try."""
    client = connection._client
    monkeypatch.setattr(connection, "_client", lambda url, timeout: client(url, 300))
    url = serve(site, *[raw(start, repeated=repeated, every=0.02, until=site.released)] * 9)
    with pytest.raises(InputError, match=r"cannot be fetched \(fewer than 1000 bytes per second came for 0\.1 seconds"):
        quick(url, target, timeout=0.1, attempts=1)
    assert not target.exists()


def test_a_file_without_an_end_is_given_up(site, target):
    endless = raw(CHUNKED, repeated=b"400\r\n" + bytes(0x400) + b"\r\n", until=site.released)
    with pytest.raises(InputError, match=r"more than 100 kB came; get the file elsewhere"):
        quick(serve(site, endless), target, max_size=100_000)
    assert list(target.parent.iterdir()) == []


def test_redirections_are_followed_without_reading_what_comes_with_them(site, target):
    """Cookies are kept from one to the next, which SharePoint asks for."""
    url = serve(site)
    site.files["first"] = b""
    start = REDIRECT + b"/file.bin\r\nSet-Cookie: ticket=7\r\nTransfer-Encoding: chunked\r\n\r\n"
    site.answers["first"].append(raw(start, repeated=b"1\r\nx\r\n", until=site.released))
    assert quick(url.replace("file.bin", "first"), target).read_bytes() == DATA
    assert site.requests[-1][1]["Cookie"] == "ticket=7"


def test_redirections_without_an_end(site, target):
    url = serve(site, *[raw(REDIRECT + b"/file.bin\r\n\r\n")] * 99)
    with pytest.raises(InputError, match=r"redirects more than 10 times"):
        quick(url, target)
    assert len(site.requests) == 11


@pytest.mark.parametrize("tag", ['"\xe4"', '"1"\0'])
def test_an_odd_validator_is_not_sent_back(site, target, tag):
    url = serve(site, sending(tag=tag, cut=100), sending(tag='"1"'))
    assert quick(url, target).read_bytes() == DATA
    assert site.ranges("file.bin") == [None, None]


@pytest.mark.parametrize("about", ["[" * 100_000, "{}", '{"url": "URL", "validator": 5, "size": 9}', '{"url": "URL"}'])
def test_damaged_notes_about_a_part_are_ignored(site, target, about):
    url = serve(site)
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"part")
    target.with_name("file.bin.part.json").write_text(about.replace("URL", url))
    assert quick(url, target).read_bytes() == DATA


@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://127.0.0.1:99999/a",
            "http://127.0.0.1:port/a",
            "http://[::1/a",
            "http:///a",
            "http://",
            "http://../a",
            "http://" + "a" * 64 + "/a",
        ),
        *("ftp://host/a", "file:///etc/passwd", "http://a b/a", "http://host/a\nb", "host/a", ""),
    ],
)
def test_an_address_that_is_malformed_is_one_line(target, address):
    with pytest.raises(InputError, match="is not an address with http or https") as error:
        quick(address, target)
    assert "\n" not in str(error.value)
    assert not target.parent.exists()


def test_proxies_of_the_environment(site, target, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", site.url)
    site.files["http://nowhere.invalid/file.bin"] = DATA
    assert quick("http://nowhere.invalid/file.bin", target).read_bytes() == DATA
    monkeypatch.setenv("http_proxy", "gopher://127.0.0.1")
    with pytest.raises(InputError, match="the proxy of the environment cannot be used"):
        quick("http://nowhere.invalid/other.bin", target.with_name("other.bin"))


def test_without_encryption_and_checksum_a_line_is_logged(site, target, caplog):
    url = serve(site)
    quick(url, target)
    assert f"{url}: is fetched without encryption, and no checksum of it is known" in caplog.text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return folder


def test_encrypted_connections(certificate, target, monkeypatch):
    """The certificate is checked, SSL_CERT_FILE counts, and a redirection to http needs a checksum."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            goal = "http://127.0.0.1:1/" if self.path == "/down" else None
            self.wfile.write(REDIRECT + goal.encode() + b"\r\n\r\n" if goal else sized(DATA))

        def log_message(self, *_) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"https://127.0.0.1:{server.server_port}/"
        try:
            with pytest.raises(InputError, match=r"certificate is not valid .*SSL_CERT_FILE"):
                quick(f"{url}file.bin", target)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
            assert quick(f"{url}file.bin", target).read_bytes() == DATA
            down = target.with_name("down")
            with pytest.raises(
                InputError, match=r"redirects to http://127\.0\.0\.1:1/, which is not encrypted, and no"
            ):
                quick(f"{url}down", down)
            with pytest.raises(InputError, match=r"cannot be fetched \(.*refused"):
                quick(f"{url}down", down, checksum="md5:00")
        finally:
            server.shutdown()
            thread.join()


def test_a_connection_that_is_cut_by_the_watch_leaves_no_thread(site, target):
    with pytest.raises(InputError):
        quick(serve(site, raw(OK, repeated=b"X", every=0.02, until=site.released)), target, timeout=0.05, attempts=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "watch of a download"]
