"""Files of every kind, and wrong, truncated and hostile files."""

import errno
import io
import os
import pickle
from collections import OrderedDict

import cv2
import numpy as np
import pytest
import released_layouts as released
import torch

from bua.checkpoint import load_checkpoint
from bua.errors import InputError
from bua.weights.caffemodel import net_parameter, read_caffemodel
from bua.weights.files import read_file, read_weights
from bua.weights.pickles import read_pickle

BLOBS = {"conv1.0": torch.rand(4, 3, 7, 7), "bn_conv1.0": torch.rand(4)}


def old_torch(weights: dict) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.fixture
def valid(tmp_path):
    """Writes a file of each kind, and returns the bytes of the files by their names."""
    released.save_caffemodel(tmp_path / "a.caffemodel", BLOBS)
    released.save_pickle(tmp_path / "a.pkl", BLOBS)
    torch.save(BLOBS, tmp_path / "a.pth")
    (tmp_path / "old.pth").write_bytes(old_torch(BLOBS))
    return {name: (tmp_path / name).read_bytes() for name in ("a.caffemodel", "a.pkl", "a.pth", "old.pth")}


NAMES = ["a.caffemodel", "a.pkl", "a.pth", "old.pth"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_read(valid, tmp_path, name):
    weights = read_weights(tmp_path / name)
    assert weights.keys() == BLOBS.keys()
    assert all(torch.equal(weights[key], value) for key, value in BLOBS.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(valid, tmp_path, name, share):
    (tmp_path / name).write_bytes(valid[name][: int(len(valid[name]) * share)])
    assert_one_line(tmp_path / name)


@pytest.mark.parametrize("name", [*NAMES, "b.bin"])
def test_files_with_other_content_are_refused(tmp_path, name):
    random = np.random.default_rng(0)
    jpeg = cv2.imencode(".jpg", random.integers(0, 255, (8, 8, 3), np.uint8))[1].tobytes()
    heads = [b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x0a", b"\xa2\x06", b"(dp0\n", b"}"]
    contents = [b"", jpeg, b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"\n\n\n", b"{}"]
    for content in [*contents, *(head + random.bytes(2000) for head in heads)]:
        (tmp_path / name).write_bytes(content)
        assert_one_line(tmp_path / name)


def assert_one_line(path) -> None:
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


class Hostile:
    """Creates a folder when it is loaded by an unpickler that executes code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "old.pth"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_file_is_never_executed(tmp_path, name, protocol):
    made = tmp_path / "made"
    content = {"model": {"a": np.zeros(2)}, "extra": [Hostile(made)]}
    if name == "a.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    elif name == "a.pth":
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(old_torch(content))
    assert_one_line(tmp_path / name)
    assert not made.exists()
    pickle.loads(pickle.dumps(Hostile(made)))
    assert made.exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, torch.load])
def test_other_names_in_pickles_are_refused(tmp_path, function):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": function}))
    with pytest.raises(pickle.UnpicklingError, match="is neither an array nor a container"):
        read_pickle(tmp_path / "a.pkl")


def test_arrays_of_objects_and_of_wrong_sizes_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.array([{}, None])}))
    with pytest.raises(pickle.UnpicklingError, match="are not numbers"):
        read_pickle(tmp_path / "a.pkl")
    # The pickle claims to have 10**12 values, and has none.
    honest = pickle.dumps({"a": np.zeros((1000, 1000, 0), "f4")}, 0)
    (tmp_path / "a.pkl").write_bytes(honest.replace(b"I0\n", b"I1000000\n"))
    assert_one_line(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_values_are_read(tmp_path, protocol):
    content = OrderedDict(
        f4=np.arange(6, dtype="f4").reshape(2, 3),
        columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        channels_last=np.arange(24.0).reshape(2, 3, 2, 2).transpose(0, 3, 1, 2),
        big_endian=np.arange(3, dtype=">i8"),
        nothing=np.zeros((0, 4), bool),
        number=np.array(3.5),
        scalar=np.float32(2.5),
        nested={"list": [1, ("a", None)]},
    )
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert found["scalar"] == 2.5
    assert found["nested"] == {"list": [1, ["a", None]]}
    for name in ("f4", "columns", "channels_last", "big_endian", "nothing", "number"):
        assert found[name].dtype == content[name].dtype
        np.testing.assert_array_equal(found[name], content[name])


def test_pickles_of_python_2_are_read(tmp_path):
    """Python 2 and numpy 1 wrote bytes as strings, numpy.core, and dtypes by position."""
    text = (
        b"(dp1\nS'conv1_w'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntS'b'\ntRp6\n"
        b"(I1\n(I2\ntcnumpy\ndtype\np8\n(S'f4'\nI0\nI1\ntRp9\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntbs."
    )
    (tmp_path / "R-50.pkl").write_bytes(text)
    assert read_weights(tmp_path / "R-50.pkl")["conv1_w"].tolist() == [1.0, -2.0]


def test_errors_of_caffemodels_are_reported(tmp_path):
    path = tmp_path / "a.caffemodel"
    net = net_parameter()(name="old")
    net.old_layers.append(b"\x0a\x01a")
    path.write_bytes(net.SerializeToString())
    with pytest.raises(InputError, match="upgrade_net_proto_binary"):
        read_file(path)
    net = net_parameter()(name="short")
    blob = net.layer.add(name="conv1").blobs.add()
    blob.shape.dim.extend([2, 2])
    blob.data.append(np.zeros(3, "<f4").tobytes())
    path.write_bytes(net.SerializeToString())
    with pytest.raises(InputError, match=r"layer conv1 has 3 values for the shape \(2, 2\)"):
        read_file(path)


def test_the_encoding_of_a_caffemodel(tmp_path):
    """The bytes are written by hand with protobuf's encoding and Caffe's field numbers, and an array in two parts."""
    part = [np.array([1, 2], "<f4").tobytes(), np.array([3], "<f4").tobytes()]
    blob = b"".join(b"\x2a" + bytes([len(p)]) + p for p in part) + b"\x3a\x03\x0a\x01\x03"
    layer = b"\x0a\x05conv1" + b"\x12\x0bConvolution" + b"\x3a" + bytes([len(blob)]) + blob
    path = tmp_path / "a.caffemodel"
    path.write_bytes(b"\x0a\x01n" + b"\xa2\x06" + bytes([len(layer)]) + layer)
    assert {name: value.tolist() for name, value in read_caffemodel(path).items()} == {"conv1.0": [1, 2, 3]}


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    path.write_bytes(b"PK")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"model\.pth: cannot be read: Permission denied"):
        read_file(path)
