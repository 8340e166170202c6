"""Images in all the forms in which they can be given."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bua.errors import InputError
from bua.io.image_inputs import as_bgr

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


RAW_ANSWERS = {
    "/no-http": b"no answer in HTTP\r\n\r\n",
    "/to-file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "/in-circles": b"HTTP/1.1 302 Found\r\nLocation: /in-circles\r\nContent-Length: 0\r\n\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nI",
    "/large": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1000),
}


@pytest.fixture
def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(png, monkeypatch):
    """The address of a server that has the image at /image.png."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/image.png"
            if self.path in RAW_ANSWERS:
                self.wfile.write(RAW_ANSWERS[self.path])
                return
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(png if found else b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_all_forms_give_the_same_pixels(tmp_path, png, server):
    path = tmp_path / "image.png"
    path.write_bytes(png)
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    with_alpha = np.concatenate([RGB, np.zeros((5, 7, 1), np.uint8)], axis=2)
    forms = [path, str(path), png, Image.fromarray(RGB), RGB, with_alpha, tensor, tensor.float() / 255]
    for form in [*forms, f"{server}/image.png"]:
        np.testing.assert_array_equal(as_bgr(form), RGB[:, :, ::-1])


def test_grey_array_becomes_three_equal_channels():
    np.testing.assert_array_equal(as_bgr(RGB[:, :, 0]), np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint16, ">u2"])
def test_of_16_bits_the_upper_8_are_kept_in_a_pil_image_as_in_a_file(dtype):
    image = Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4) * 5000)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(as_bgr(image), as_bgr(buffer.getvalue()))
    np.testing.assert_array_equal(as_bgr(image)[0, :, 0], [0, 19, 39, 58])


def test_a_pil_image_that_is_truncated_and_a_file_that_is_closed(tmp_path, png):
    path = tmp_path / "image.png"
    path.write_bytes(png[:60])
    with pytest.raises(InputError, match=r"image\.png: the PIL image cannot be decoded"):
        as_bgr(Image.open(path))
    with open(path, "rb") as file:
        pass
    with pytest.raises(InputError, match=r"image\.png: cannot be read \(.*closed file"):
        as_bgr(file)


def test_result_can_be_given_to_opencv():
    image = as_bgr(RGB)
    assert image.flags.c_contiguous
    cv2.rectangle(image, (0, 0), (3, 3), (0, 0, 0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "is of type int"),
        (RGB.astype(np.float32), "dtype float32"),
        (RGB[:0], "shape"),
        (RGB[None], "shape"),
        (torch.zeros(5, 7, 3), r"\[3, H, W\]"),
        (torch.full((3, 2, 2), 255.0), "between 255 and 255"),
        (torch.full((3, 2, 2), float("nan")), "between nan and nan"),
        (b"no image", "the bytes of an image: is not an image"),
        ("nowhere.jpg", "nowhere.jpg: cannot be read"),
        (io.StringIO("no image"), "the open file: is not open as a binary file"),
        (Image.new("F", (5, 7)), "mode F, with 32 bits"),
        (Image.new("I", (5, 7)), "mode I, with 32 bits"),
        (np.broadcast_to(np.uint8(1), (10**5, 10**5, 3)), "100000x100000 pixels, more than 178 million"),
        (np.broadcast_to(np.uint8(1), (10**5, 10**5)), "100000x100000 pixels"),
        (torch.zeros(3, 1, 1).expand(3, 10**5, 10**5), "100000x100000 pixels"),
        (torch.zeros(3, 5, 7, device="meta"), "without values"),
        (torch.zeros(3, 5, 7).to_sparse(), "is sparse"),
    ],
)
def test_bad_input_is_refused_in_one_line(image, message):
    with pytest.raises(InputError, match=message) as caught:
        as_bgr(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no.png", r"/no\.png: the server refuses \(404"),
        ("/a b.png", r"/a b\.png: the server refuses \(404"),
        ("/\n.png", r"n\.png': is not an address"),
        ("/no-http", "/no-http: cannot be downloaded"),
        ("/to-file", "/to-file: the server redirects to 'file://.*': is not an address"),
        ("/in-circles", "/in-circles: the server redirects more than 10 times"),
        ("/cut", "/cut: only 1 of 100 bytes came"),
        ("/large", "/large: has more than 0 MiB"),
    ],
)
def test_what_servers_do_instead_of_sending_an_image_is_one_line(server, path, message, monkeypatch):
    monkeypatch.setattr("bua.io.image_inputs.MAX_BYTES", 999)
    with pytest.raises(InputError, match=message) as caught:
        as_bgr(server + path)
    assert "\n" not in str(caught.value)
