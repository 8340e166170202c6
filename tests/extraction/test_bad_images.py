"""Images as they are found in the wild: each gives the right array, or one line that says what is wrong with it."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bua.config import load_cfg
from bua.errors import InputError
from bua.extraction import list_images, regions_from, regions_of_given
from bua.io.images import read_image
from bua.modeling import build_detector

# Blocks of one colour, which lossy compression keeps.
BLOCKS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
RGB = np.kron(BLOCKS, np.ones((16, 16, 1), np.uint8))
PICTURE = Image.fromarray(RGB)


def encoded(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def read(folder, data, name="a.jpg"):
    path = folder / name
    path.write_bytes(data)
    return read_image(path)


def png(width, height, bits, colour_type, rows):
    """A PNG of the given rows of bytes, whatever the header says."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


JPEG, PNG = encoded(PICTURE, "JPEG", quality=95), encoded(PICTURE, "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not an image", id="zero bytes"),
        pytest.param(b"<html>404 Not Found</html>", "not an image", id="text"),
        pytest.param(JPEG[:2], "truncated JPEG", id="the start of a JPEG alone"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated JPEG", id="truncated JPEG"),
        pytest.param(PNG[: len(PNG) // 2], "truncated PNG", id="truncated PNG"),
        pytest.param(encoded(PICTURE, "GIF")[:200], "damaged", id="truncated GIF"),
        pytest.param(encoded(PICTURE, "WEBP")[:100], "damaged", id="truncated WebP"),
        pytest.param(encoded(PICTURE, "BMP")[:2000], "damaged", id="truncated BMP"),
        pytest.param(png(60000, 60000, 8, 2, [b"\0" * 300]), "178 million pixels", id="bomb that PIL refuses"),
        pytest.param(png(20000, 9000, 8, 2, [b"\0" * 300]), "178 million pixels", id="bomb that OpenCV would take"),
        pytest.param(PNG[:33] + b"\xff" + PNG[34:], "truncated PNG", id="a part that claims four gigabytes"),
        pytest.param(PNG[:17] + b"\xff" + PNG[18:], "damaged", id="bomb by damage that OpenCV would take"),
        pytest.param(png(0, 10, 8, 2, []), "damaged", id="no width"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, data, message):
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path, data)
    assert str(raised.value).startswith(f"{tmp_path / 'a.jpg'}: ")
    assert "\n" not in str(raised.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("bua.io.images._decode", lambda data: pytest.fail("decoded"))
    with pytest.raises(InputError, match="million pixels"):
        read(tmp_path, png(60000, 60000, 8, 2, [b"\0" * 300]))


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(InputError, match=r"folder.jpg: cannot be read: Is a directory"):
        read_image(tmp_path / "folder.jpg")
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    with pytest.raises(InputError, match=r"link.jpg: cannot be read \(a link to gone.jpg\): No such file"):
        read_image(tmp_path / "link.jpg")

    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe.jpg: cannot be read: it is a named pipe"):
        read_image(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(InputError, match=r"self.jpg: cannot be read \(a link to self.jpg\): Too many levels"):
        read_image(tmp_path / "self.jpg")
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"large.jpg: has 1099511627776 bytes, more than 1024 MiB"):
        read_image(tmp_path / "large.jpg")

    def refuse(path, mode, opener):
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no file refuses.
    monkeypatch.setattr("builtins.open", refuse)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match=r"a.jpg: cannot be read: Permission denied"):
        read_image(tmp_path / "a.jpg")


def test_a_link_to_nowhere_in_a_folder_is_listed_so_that_its_failure_is(tmp_path):
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert [image.image_id for image in list_images(tmp_path)] == ["link"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(PNG, RGB, id="PNG"),
        pytest.param(encoded(PICTURE.quantize(64), "PNG"), RGB, id="palette PNG"),
        pytest.param(encoded(PICTURE.quantize(64), "PNG", transparency=0), RGB, id="palette with transparency"),
        pytest.param(encoded(PICTURE.quantize(64), "GIF"), RGB, id="GIF"),
        pytest.param(
            encoded(
                PICTURE.quantize(64), "GIF", save_all=True, append_images=[Image.new("RGB", PICTURE.size, "red")] * 2
            ),
            RGB,
            id="animated GIF",
        ),
        pytest.param(
            encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", PICTURE.size)]),
            RGB,
            id="animated WebP",
        ),
        pytest.param(encoded(PICTURE, "TIFF", compression="tiff_lzw"), RGB, id="TIFF"),
        pytest.param(encoded(Image.fromarray(RGB[..., 0]), "PNG"), np.repeat(RGB[..., :1], 3, axis=2), id="grey PNG"),
        pytest.param(
            encoded(PICTURE.convert("1", dither=Image.Dither.NONE), "PNG"),
            np.repeat(np.asarray(PICTURE.convert("L"))[..., None] > 127, 3, axis=2) * np.uint8(255),
            id="black and white PNG",
        ),
        pytest.param(
            png(80, 48, 16, 2, [(row * 256 + 200).astype(">u2").tobytes() for row in RGB.astype(int)]),
            RGB,
            id="16-bit PNG",
        ),
        pytest.param(
            png(80, 48, 16, 0, [(row * 256 + 7).astype(">u2").tobytes() for row in RGB[..., 1].astype(int)]),
            np.repeat(RGB[..., 1:2], 3, axis=2),
            id="16-bit grey PNG",
        ),
        pytest.param(
            encoded(Image.fromarray(np.dstack([RGB, np.zeros_like(RGB[..., 0])])), "PNG"), RGB, id="transparent PNG"
        ),
    ],
)
def test_images_of_every_kind_become_bgr(tmp_path, data, expected):
    image = read(tmp_path, data)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image, expected[..., ::-1])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(JPEG, RGB, id="JPEG"),
        pytest.param(encoded(PICTURE, "JPEG", quality=95, progressive=True), RGB, id="progressive JPEG"),
        pytest.param(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), RGB, id="CMYK JPEG"),
        pytest.param(
            encoded(PICTURE.convert("L"), "JPEG", quality=95),
            np.repeat(np.asarray(PICTURE.convert("L"))[..., None], 3, axis=2),
            id="grey JPEG",
        ),
    ],
)
def test_jpegs_of_every_kind_become_bgr(tmp_path, data, expected):
    middles = read(tmp_path, data)[8::16, 8::16, ::-1].astype(int)
    assert np.abs(middles - expected[8::16, 8::16]).max() <= 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_not_done(tmp_path, format):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    assert read(tmp_path, encoded(PICTURE, format, exif=exif)).shape == RGB.shape


@pytest.mark.parametrize("size", [(1, 1), (20000, 50), (50, 20000)])
def test_images_of_any_shape_are_read(tmp_path, size):
    assert read(tmp_path, encoded(Image.new("RGB", size), "JPEG")).shape == (size[1], size[0], 3)


def test_an_image_inside_a_file(tmp_path):
    path = tmp_path / "many.bin"
    path.write_bytes(b"before" + PNG + b"after")
    np.testing.assert_array_equal(read_image(path, (6, len(PNG))), RGB[..., ::-1])
    with pytest.raises(InputError, match=r"many.bin \(at byte 7\): is not an image"):
        read_image(path, (7, len(PNG)))
    with pytest.raises(InputError, match=rf"many.bin \(at byte 6\): .* has {len(PNG) + 5} of 9999 bytes"):
        read_image(path, (6, 9999))
    for offset, message in ((9999, "has 0 of 1073741824 bytes"), (6, rf"has {len(PNG) + 5} of")):
        with pytest.raises(InputError, match=message):
            read_image(path, (offset, 2**30))


def test_a_jpeg_of_so_many_scans_that_decoding_takes_minutes_is_refused(tmp_path):
    data = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    assert read(tmp_path, data).shape == (1000, 1000, 3)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(InputError, match=r"a.jpg: is a JPEG of \d+ scans"):
        read(tmp_path, data[:-2] + scan * 1000 + data[-2:])


@pytest.mark.parametrize(
    "data", [JPEG, PNG, encoded(PICTURE, "GIF"), encoded(PICTURE, "TIFF"), encoded(PICTURE, "BMP")]
)
@given(damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), length=st.integers(0, 12000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_damage_gives_an_image_or_one_line(tmp_path, monkeypatch, data, damage, length):
    # Damage may claim a size that takes seconds.
    monkeypatch.setattr("bua.io.images.MAX_PIXELS", 1_000_000)
    damaged = bytearray(data)
    for position, value in damage:
        damaged[position % len(data)] = value
    try:
        image = read(tmp_path, bytes(damaged[:length]))
    except InputError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


@pytest.fixture(scope="module")
def detector():
    return build_detector(load_cfg("configs/shapes.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])).eval()


def test_an_image_of_one_pixel_has_no_region_of_the_least_size(detector):
    (predictions,) = detector.predict([np.zeros((1, 1, 3), np.uint8)])
    regions = regions_from(predictions, "dot")
    assert (regions.width, regions.height, len(regions)) == (1, 1, 0)
    assert regions.boxes.shape == (0, 4)
    assert regions.features.shape == (0, detector.roi_heads.feature_dim)
    assert regions.object_ids.shape == regions.attribute_scores.shape == (0,)


@pytest.mark.parametrize("shape", [(50, 20000, 3), (20000, 50, 3)])
def test_an_image_too_narrow_for_the_network_is_refused(detector, shape):
    # 1000 x 2.5 network pixels in the original's size; its first layers end with no row.
    with pytest.raises(
        InputError, match=f"an image of {shape[1]}x{shape[0]} pixels would be resized to .*, and the network needs"
    ):
        detector.prepare(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(200, 20000, 3), (20000, 200, 3)])
def test_the_narrowest_images_that_the_network_takes(detector, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert min(detector.prepare(image).image.shape[1:]) == 3
    (predictions,) = detector.predict([image])
    regions = regions_from(predictions, 1)
    assert np.isfinite(regions.features).all()
    assert len(regions) <= len(predictions.proposals)


def test_given_boxes_over_the_edge_and_none_at_all(detector):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    boxes = torch.tensor([[50.0, 30, 90, 70], [5, 5, 5, 5], [-20, -20, 10, 10], [100, 100, 200, 200]])
    (predictions,) = detector.predict([image], [boxes])
    regions = regions_of_given(predictions, 1)
    np.testing.assert_array_equal(regions.boxes, boxes)
    assert np.isfinite(regions.features).all()
    (predictions,) = detector.predict([image], [torch.zeros(0, 4)])
    assert len(regions_of_given(predictions, 1)) == 0


def test_an_id_twice(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("one/1.jpg\ntwo/1.png\n")
    with pytest.raises(InputError, match=r"one/1.jpg and two/1.png both have the id 1; name .* in a list file"):
        list_images(path)
    path.write_text("one/1.jpg\ntwo/2.jpg\none/1.jpg\n")
    with pytest.raises(InputError, match=r"one/1.jpg is listed twice with the id 1; remove one"):
        list_images(path)
    path.write_text("one/1.jpg\ttrain-1\none/1.jpg\tagain\n")
    assert len(list_images(path)) == 2
    for name in ("a.v1.jpg", "a.v2.jpg"):
        (tmp_path / name).touch()
    assert [image.image_id for image in list_images(tmp_path)] == ["a.v1", "a.v2"]
