import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.io import json_records
from bua.io.json_records import column, iter_records, read_json, read_records

VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('ab"\\{}[],: \n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\}]', max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3), max_size=8),
    st.integers(3, 60),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " \n"]),
)
@settings(deadline=None)
def test_the_records_do_not_depend_on_the_size_of_the_pieces(tmp_path_factory, records, piece_bytes, indent, blanks):
    path = tmp_path_factory.mktemp("records") / "records.json"
    path.write_text(blanks + json.dumps(records, indent=indent, ensure_ascii=False) + blanks, encoding="utf-8")
    assert list(iter_records(path, progress=False, piece_bytes=piece_bytes)) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "top level must be a list"),
        ('{"images": []}', "top level must be a list"),
        ("[1, 2]", "the list must hold objects"),
        ('[{"a": 1}, {"b": [1, ', "truncated"),
        ('[{"a": 1}', "truncated"),
        ('[{"a": 1}, {"b": nope}]', "not JSON"),
        ('[{"a": ' + "[" * 2000 + "]" * 2000 + "}]", "not JSON"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    path = tmp_path / "objects.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        list(iter_records(path, progress=False, piece_bytes=8))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(iter_records(tmp_path / "objects.json"))


def test_a_record_without_end_is_not_read_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "objects.json"
    path.write_text('[{"a": "' + "x" * 900 + '"}, {"a": "' + "x" * 5000 + '"}]')
    with pytest.raises(InputError, match=r"objects.json: the record before byte \d+ has more than"):
        list(iter_records(path, progress=False, piece_bytes=100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"a": 1', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (None, "cannot be read: it is a named pipe"),
    ],
)
def test_a_file_that_is_not_json_is_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"a.json: {message}.*; draw it again"):
        read_json(path, "draw it again")
    with pytest.raises(InputError, match=r"a.json: "):
        list(iter_records(path))
    with pytest.raises(InputError, match=rf"a.json: {message}.*; give a file with a list of annotations"):
        read_records(path, "annotations")


def test_paths_that_no_file_can_have(tmp_path):
    for path, message in ((tmp_path / ("x" * 300), "File name too long"), ("a\0b", "is not a file name")):
        for read in (read_json, lambda path: list(iter_records(path))):
            with pytest.raises(InputError, match=message):
                read(path)


def test_a_wrong_value_of_any_size_is_shown_in_a_short_message():
    value: list = []
    for _ in range(2000):
        value = [value, "x" * 1000]
    with pytest.raises(InputError, match=r"a.json: record 0: id is .*; it must be an integer") as raised:
        column("a.json", [{"id": value}], "id", int)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("image_id", [2**63, -(2**63) - 1])
def test_an_id_of_more_than_64_bits_is_refused(image_id):
    with pytest.raises(InputError, match=rf"a.json: id is {image_id} in a record; it must have at most 64 bits"):
        column("a.json", [{"id": 1}, {"id": image_id}], "id", int)
    assert column("a.json", [{"id": 2**63 - 1}], "id", int) == [2**63 - 1]
