import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.features.ids import file_stem, id_of_file_stem, image_id_of, parse_id

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("value", "image_id"),
    [
        *[
            (42, 42),
            ("42", 42),
            ("0", 0),
            ("-3", -3),
            ("042", "042"),
            ("4 2", "4 2"),
            ("a", "a"),
            ("٣", "٣"),
            ("-0", "-0"),
        ],
        # More digits than Python converts.
        *[("9" * 640, int("9" * 640)), ("9" * 5000, "9" * 5000), ("-" + "9" * 5000, "-" + "9" * 5000)],
    ],
)
def test_text_of_an_integer_becomes_an_integer(value, image_id):
    assert parse_id(value) == image_id
    assert type(parse_id(value)) is type(image_id)


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("x/COCO_train2014_000000084002.jpg", 84002),
        ("000000084002.jpg", 84002),
        ("2345.jpg", 2345),
        ("0012.jpg", "0012"),
        ("a.b.c.png", "a.b.c"),
        ("COCO_train2014_84002.jpg", "COCO_train2014_84002"),
    ],
)
def test_id_from_a_file_name(path, image_id):
    assert image_id_of(path) == image_id


@given(texts)
def test_file_stems_are_converted_back_to_their_ids(text):
    stem = file_stem(text)
    assert id_of_file_stem(stem) == parse_id(text)
    assert not set(stem) & set('/\\\0:*?"<>|')
    assert not stem.startswith(".")


def test_file_stems_stay_readable():
    assert file_stem("été 1.v2") == "été 1.v2"
    assert file_stem("a/b") == "a%2Fb"
