import io
import logging
import os
import tarfile

import cv2
import numpy as np
import pytest

from bua.errors import InputError
from bua.extraction import ImageFile, list_images
from bua.io.images import read_image

IMAGES = {
    name: np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for seed, name in enumerate(["000001.png", "000002.PNG", "sub/été 猫.png", f"{'long' * 60}.png", "7.png"])
}


def write_tar(path, files, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def encode(image):
    return cv2.imencode(".png", image)[1].tobytes()


def sample_files():
    """Images, each with a JSON file of the same sample, as in WebDataset."""
    files = {}
    for name, image in IMAGES.items():
        files[name] = encode(image)
        files[name.rsplit(".", 1)[0] + ".json"] = b"{}"
    return files


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_from_the_archive_in_place(tmp_path, format):
    path = tmp_path / "a.tar"
    write_tar(path, sample_files(), format)
    images = list_images(path)
    assert [image.image_id for image in images] == ["000001", "000002", "sub/été 猫", "long" * 60, 7]
    assert {image.path for image in images} == {str(path)}
    for image, expected in zip(images, IMAGES.values()):
        np.testing.assert_array_equal(read_image(image.path, image.span), expected)


def test_globs_and_ranges_of_shards(tmp_path):
    for shard in range(12):
        write_tar(tmp_path / f"train-{shard:03d}.tar", {f"./{shard}-{i}.jpg": b"x" * i for i in range(3)})
    images = list_images(f"{tmp_path}/train-{{000..011}}.tar")
    assert len(images) == 36
    assert images[-1] == ImageFile(str(tmp_path / "train-011.tar"), "11-2", images[-1].span)
    assert images[-1].span[1] == 2
    assert list_images(f"{tmp_path}/train-*.tar") == images
    assert list_images(f"{tmp_path}/train-{{009..010}}.tar") == images[27:33]
    with pytest.raises(InputError, match=r"train-012.tar: no such file"):
        list_images(f"{tmp_path}/train-{{010..012}}.tar")


def test_a_key_in_two_shards(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"0.jpg": b"x"})
    with pytest.raises(InputError, match=r"a.tar and .*b.tar both have the id 0; names must differ"):
        list_images(f"{tmp_path}/*.tar")


def test_other_members_of_a_sample_are_left_out(tmp_path, caplog):
    path = tmp_path / "a.tar"
    write_tar(path, {"0.jpg": b"x", "0.seg.png": b"x", ".hidden.jpg": b"x", "0.txt": b"x", "d.jpg/1.webp": b"x"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        archive.addfile(link)
        folder = tarfile.TarInfo("3.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with caplog.at_level(logging.WARNING):
        assert [image.image_id for image in list_images(path)] == [0, "d.jpg/1"]
    (record,) = caplog.records
    assert "a.tar: 2 images are left out, such as 0.seg.png" in record.getMessage()


def ids_and_warnings(path, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        images = list_images(path)
    return [image.image_id for image in images], [record.getMessage() for record in caplog.records]


def test_a_truncated_shard_gives_the_images_before_and_one_warning(tmp_path, caplog):
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.jpg": bytes([65 + i]) * 700 for i in range(3)})
    data = path.read_bytes()
    record = 512 + 1024
    # Its end marker is zeros that some programs do not write.
    path.write_bytes(data[: 3 * record])
    assert ids_and_warnings(path, caplog) == ([0, 1, 2], [])

    path.write_bytes(data[: 2 * record + 600])
    ids, warnings = ids_and_warnings(path, caplog)
    assert ids == [0, 1, 2]
    assert len(warnings) == 1
    assert "a.tar: truncated or damaged" in warnings[0]
    last = list_images(path)[-1]
    with pytest.raises(InputError, match=r"has 88 of 700 bytes"):
        read_image(last.path, last.span)

    for damaged in (data[: 2 * record + 100], data[: 2 * record] + b"rubbish!" * 200):
        path.write_bytes(damaged)
        ids, warnings = ids_and_warnings(path, caplog)
        assert ids == [0, 1]
        assert len(warnings) == 1
        assert f"at byte {2 * record}" in warnings[0]


def header(name="1.jpg", kind=b"0", **fields):
    """A header of 512 bytes with a right checksum, whose numbers are written as they are."""
    member = tarfile.TarInfo(name)
    member.type = kind
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for (start, end), value in fields.values():
        data[start:end] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


SIZE = (124, 136)
MINUS_512 = b"\xff" * 10 + b"\xfe\x00"


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(header(size=(SIZE, MINUS_512)), id="a size that leads back to the same header"),
        pytest.param(header(size=(SIZE, b"\xff" * 10 + b"\xfc\x00")), id="back to the one before"),
        pytest.param(header(size=(SIZE, b"\xff" * 12)), id="a size of -1"),
        pytest.param(header(size=(SIZE, b"\x80" + b"\xff" * 11)), id="a size of 2**88"),
        pytest.param(header(kind=b"S", extended=((482, 483), b"\1")), id="a sparse file whose map goes on"),
        pytest.param(header(kind=b"x", size=(SIZE, b"00000000020\0")) + b"9999 size=-99\n".ljust(512, b"\0"), id="pax"),
        pytest.param(header(kind=b"L", size=(SIZE, b"00000000001\0")).ljust(1024, b"a") * 2000, id="names of names"),
    ],
)
def test_a_damaged_header_ends_the_list_and_not_the_run(tmp_path, caplog, damaged):
    path = tmp_path / "a.tar"
    write_tar(path, {"0.jpg": b"x"})
    path.write_bytes(path.read_bytes()[:1024] + damaged + bytes(1024))
    ids, warnings = ids_and_warnings(path, caplog)
    assert ids[0] == 0
    assert warnings
    path.write_bytes(damaged + bytes(1024))
    images, reason = [], str(path)
    try:
        images = list_images(path)
    except InputError as error:
        reason = str(error)
    assert str(path) in reason
    for image in images:
        with pytest.raises(InputError, match=r"a.tar \(at byte \d+\): "):
            read_image(image.path, image.span)


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"a.tar: cannot be read: it is a named pipe"):
        list_images(tmp_path / "a.tar")


@pytest.mark.parametrize("data", [b"", b"x" * 2000, b"\x1f\x8b\x08" + b"x" * 2000])
def test_a_file_that_is_no_tar_archive_is_named(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.tar: not an uncompressed tar archive"):
        list_images(path)
    path.rename(tmp_path / "a.tar.gz")
    with pytest.raises(InputError, match=r"a.tar.gz: not an uncompressed tar archive"):
        list_images(tmp_path / "a.tar.gz")


def test_a_shard_without_images(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.json": b"{}"})
    with pytest.raises(InputError, match="contains no images"):
        list_images(tmp_path / "a.tar")
