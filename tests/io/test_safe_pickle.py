import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from bua.io import safe_pickle

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ARRAYS = numpy_strategies.arrays(
    st.sampled_from(["f4", "f8", "i8", "u1", "?", "U3", "S2"]), numpy_strategies.array_shapes(min_dims=0, min_side=0)
)
CONTENT = st.recursive(
    SCALARS | ARRAYS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
)


def same(left, right) -> bool:
    if isinstance(left, np.ndarray):
        return (
            type(right) is np.ndarray
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@settings(max_examples=50, deadline=None)
@given(CONTENT)
def test_loads_what_any_protocol_wrote(content):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert same(content, safe_pickle.loads(pickle.dumps(content, protocol=protocol)))


@settings(max_examples=50, deadline=None)
@given(CONTENT)
def test_dumps_is_read_by_pickle_and_by_loads(content):
    data = safe_pickle.dumps(content)
    assert same(content, pickle.loads(data))
    assert same(content, safe_pickle.loads(data))


def test_dumps_names_numpy_as_numpy_1_does():
    content = {"numpy._core.multiarray": np.array([np.float32(2), {"boxes": np.ones((2, 4))}], dtype=object)}
    data = safe_pickle.dumps(content)
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"cnumpy._core" not in data
    assert list(pickle.loads(data)) == ["numpy._core.multiarray"]


def test_arrays_of_objects_scalars_and_types():
    inner = {"image_id": "a", "objects_id": np.arange(3), "nested": [np.ones((2, 2), np.float32)]}
    content = {"info": np.array(inner, dtype=object), "score": np.float32(0.5), "type": np.dtype(">i4")}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        read = safe_pickle.loads(pickle.dumps(content, protocol=protocol))
        assert read["info"].shape == ()
        assert same(inner, read["info"].item())
        assert isinstance(read["score"], float)
        assert read["score"] == 0.5
        assert read["type"] == np.dtype(">i4")


def test_layout_in_memory_does_not_matter():
    array = np.arange(24.0).reshape(2, 3, 4)
    for layout in (np.asfortranarray(array), array.transpose(1, 0, 2), array[:, ::2]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            read = safe_pickle.loads(pickle.dumps(layout, protocol=protocol))
            np.testing.assert_array_equal(read, layout)
            read[0] = 1  # the array is writable


def test_shared_content():
    row = [np.ones(2)]
    read = safe_pickle.loads(pickle.dumps({"a": row, "b": row}))
    assert read["a"] is read["b"]
    np.testing.assert_array_equal(read["a"][0], np.ones(2))


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Call(os.system, "touch ran"), "system"),
        (Call(eval, "open('ran', 'w')"), "eval"),
        (Call(getattr, "a", "upper"), "getattr"),
        (Call(subprocess.Popen, ["touch", "ran"]), "Popen"),
        (Call(np.load, "file"), "load"),
        (np.zeros(2, dtype="f4,i4"), "array of V8"),
        (np.zeros(2, dtype="M8[s]"), "array of M8"),
    ],
)
def test_everything_else_is_refused(content, named, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrapped in (content, {"boxes": [content]}):
        with pytest.raises(ValueError, match=f"{named}.*not allowed"):
            safe_pickle.loads(pickle.dumps(wrapped, protocol=protocol))
    assert not (tmp_path / "ran").exists()


def test_array_without_its_data_is_refused():
    made = "numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray"
    huge = b"\x80\x02c" + made.encode() + b"\n_reconstruct\ncnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01b\x87R."
    with pytest.raises(ValueError, match="not a readable pickle"):
        safe_pickle.loads(huge)


def doubled(begin, step, times=100):
    """Returns opcodes that put an object on the stack in which each level has the one below it twice."""
    return begin + step * times


# Opcodes: \x80 protocol, r and p: memo, ) and \x85: tuples of 0 and 1 items, 2 and \x86: a pair of the same object.
LAUGHS = doubled(b")", b"2\x86")
LIST = doubled(b"]", b"q\x00]h\x00ah\x00a")
MEGABYTE = b"B\x00\x00\x10\x00" + bytes(1 << 20) + b"q\x00"
EMPTY_DICTIONARY = b"ccollections\nOrderedDict\n)R"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x00h\x00tb"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # It is said to be the object of a number of four billion.
        (b"\x80\x02]r\xff\xff\xff\xff.", None),
        (b"\x80\x02]p4294967295\n.", None),
        (b"\x80\x05B\xff\xff\xff\xffa.", "not a readable pickle"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00a.", "truncated"),
        # Their hashes take 2^100 steps, or more of the stack than there is.
        (b"\x80\x02}" + LAUGHS + b"Ns.", "nested or long tuple as a key"),
        (b"\x80\x02}(" + LAUGHS + b"Nu.", "nested or long tuple as a key"),
        (b"\x80\x02(" + LAUGHS + b"Nd.", "nested or long tuple as a key"),
        (b"\x80\x04\x8f(" + LAUGHS + b"\x90.", "nested or long tuple as a key"),
        (b"\x80\x04}(" + LAUGHS + b"\x90.", "elements of a set"),
        (b"\x80\x04(" + LAUGHS + b"\x91.", "nested or long tuple as a key"),
        (b"\x80\x02ccollections\nOrderedDict\n](" + LAUGHS + b"N\x86e\x85R.", "nested or long tuple as a key"),
        (b"\x80\x02}" + doubled(b")", b"\x85", 20_000) + b"Ns.", "nested or long tuple as a key"),
        # Where such an object is converted to text or to an array, it would take all memory.
        (b"\x80\x02" + LAUGHS + b".", "the same data many times"),
        (b"\x80\x02" + LIST + b".", "the same data many times"),
        (b"\x80\x02]q\x00(h\x00h\x00e.", "an object that contains itself"),
        (b"\x80\x02cnumpy\ndtype\n" + LAUGHS + b"\x85R.", "a dtype of a tuple"),
        (b"\x80\x02c_codecs\nencode\nX\x00\x00\x00\x00" + LAUGHS + b"\x86R.", "another encoding"),
        # The same data are copied many times.
        (b"\x80\x03]" + MEGABYTE + b"0(" + ARRAY * 30 + b"e.", "the same data many times"),
        # Attributes are of no use, and would be copied.
        (b"\x80\x02" + EMPTY_DICTIONARY + b"}U\x01aNsb.", None),
        (b"\x80\x02c_codecs\nencode\n}U\x01aNsb.", "the state of a function"),
    ],
)
def test_a_small_pickle_takes_no_more_memory_or_time_than_its_size(data, message):
    tracemalloc.start()
    try:
        if message is None:
            assert safe_pickle.loads(data) in ([], {})
        else:
            with pytest.raises(ValueError, match=message):
                safe_pickle.loads(data)
        assert tracemalloc.get_traced_memory()[1] < 32 * len(data) + (4 << 20)
    finally:
        tracemalloc.stop()


def test_damaged_pickles_are_reported():
    data = pickle.dumps({"boxes": np.arange(20.0), "id": "ü"})
    for end in range(len(data)):
        with pytest.raises(ValueError, match="not a readable pickle"):
            safe_pickle.loads(data[:end])
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] = generator.integers(256)
        try:
            safe_pickle.loads(bytes(damaged))
        except ValueError:
            continue


def test_written_pickles_load_without_warnings():
    data = safe_pickle.dumps(np.array({"bbox": np.ones((2, 4), np.float32)}, dtype=object))
    code = "import pickle, sys; assert pickle.loads(sys.stdin.buffer.read()).item()['bbox'].shape == (2, 4)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], input=data, check=True)
