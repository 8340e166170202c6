import multiprocessing
import time
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bua.errors import InputError
from bua.io.images import Resize, naming_image, read_image, resize_image, resize_scale


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_exif_rotation_is_ignored(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers show the image rotated by 90 degrees
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == image.shape


def test_read_gives_bgr(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image[..., ::-1])


def test_a_gif_is_converted_in_strips(tmp_path, image, monkeypatch):
    Image.fromarray(image).save(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        expected = np.asarray(gif.convert("RGB"))[..., ::-1]
    for pixels in (1, 500, 60 * 90):
        monkeypatch.setattr("bua.io.images.STRIP_PIXELS", pixels)
        np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), expected)


def test_a_large_image_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # PIL warns of more pixels, and refuses twice as many
    monkeypatch.setattr("bua.io.images.STRIP_PIXELS", 500)
    for name in ("a.png", "a.gif", "a.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)
        with open(tmp_path / name, "ab") as file:
            file.write(b"trailer")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name).shape == (50, 100, 3)


def test_a_large_gif_needs_little_memory_beside_the_image(tmp_path):
    Image.new("P", (4000, 3000)).save(tmp_path / "a.gif")
    tracemalloc.start()
    try:
        assert read_image(tmp_path / "a.gif").shape == (3000, 4000, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 3 * 4000 * 3000


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"", "is not an image"), (b"hello", "is not an image")],
)
def test_a_file_that_is_not_an_image_is_named(tmp_path, content, message):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"broken.jpg: {message}"):
        read_image(path)


def test_a_path_that_is_not_a_file_name_is_named():
    with pytest.raises(InputError, match="is not a file name"):
        read_image("a\0b.jpg")


def test_a_truncated_jpeg_is_named_and_trailing_bytes_are_ignored(tmp_path, image):
    data = cv2.imencode(".jpg", image)[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut.jpg: is a truncated JPEG"):
        read_image(tmp_path / "cut.jpg")
    (tmp_path / "more.jpg").write_bytes(data + b"\0\0trailer")
    assert read_image(tmp_path / "more.jpg").shape == image.shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), 600 / 480), ((640, 480), 600 / 480), ((300, 900), 1000 / 900), ((600, 1000), 1.0)],
)
def test_scale_brings_the_short_side_to_600_unless_the_long_one_exceeds_1000(size, expected):
    assert resize_scale(*size, 600, 1000) == pytest.approx(expected)


def test_caffe_resize_is_float_with_one_scale(image):
    resized, scale = resize_image(image, 50, 1000, "caffe")
    assert resized.dtype == np.float32
    assert resized.shape == (50, 75, 3)
    assert scale == (50 / 60, 50 / 60)
    mean = np.array([102.9801, 115.9465, 122.7717], np.float32)
    original = cv2.resize(image.astype(np.float32) - mean, None, None, 50 / 60, 50 / 60, cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized - mean, original, atol=1e-4)


def test_a_large_image_is_resized_to_the_same_values(image, monkeypatch):
    expected = resize_image(image, 50, 1000, "caffe")
    monkeypatch.setattr("bua.io.images.LARGE_PIXELS", 1000)
    resized = resize_image(image, 50, 1000, "caffe")
    np.testing.assert_array_equal(resized[0], expected[0])
    assert resized[0].flags.c_contiguous
    assert resized[1] == expected[1]


def test_the_name_of_an_image_is_added_to_messages_that_lack_it():
    with pytest.raises(InputError, match=r"^a.jpg: too narrow$"), naming_image("a.jpg"):
        raise InputError("too narrow")
    with pytest.raises(InputError, match=r"^a.jpg \(at byte 5\): damaged$"), naming_image("a.jpg"):
        raise InputError("a.jpg (at byte 5): damaged")


def test_detectron2_resize_is_uint8_with_a_scale_for_each_axis(image):
    resized, (scale_x, scale_y) = resize_image(image, 47, 1000, "detectron2")
    assert resized.shape == (47, 71, 3)  # 70.5 rounds up
    assert (scale_x, scale_y) == (71 / 90, 47 / 60)
    np.testing.assert_array_equal(resized, resized.round())
    resized, _ = resize_image(image, 47, 60, "detectron2")
    assert resized.shape == (40, 60, 3)


def test_resize_returns_the_input_of_the_detector(image):
    detector_input = Resize(50, 1000, "caffe")(image, image_id="a")
    assert detector_input.image.shape == (3, 50, 75)
    assert detector_input.image.dtype == torch.float32
    assert (detector_input.width, detector_input.height, detector_input.image_id) == (90, 60, "a")


@pytest.mark.parametrize("mode", ["caffe", "detectron2"])
def test_an_image_too_narrow_for_any_size_is_refused(mode):
    with pytest.raises(InputError, match="20000x5 pixels"):
        resize_image(np.zeros((5, 20000, 3), np.uint8), 600, 1000, mode)


def test_a_process_forked_after_an_image_was_resized_can_resize(image):
    """If OpenCV used threads, the forked process would hang, since threads do not survive a fork."""
    resize_image(np.zeros((2000, 3000, 3), np.uint8), 1500, 2250, "caffe")
    time.sleep(0.2)  # until threads, if there are any, wait for work
    with multiprocessing.get_context("fork").Pool(1) as pool:
        job = pool.apply_async(_resize_in_a_worker, (image,))
        assert job.get(timeout=300) == (50, 75, 3)


def _resize_in_a_worker(image):
    cv2.setNumThreads(1)
    return resize_image(image, 50, 1000, "caffe")[0].shape
