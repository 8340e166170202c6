import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.errors import InputError
from bua.io.json_records import iter_records

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
