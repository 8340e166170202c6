import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.errors import InputError
from bua.vocabulary import MAX_UNPACKED, Vocabulary, read_list

WORDS = st.text("abcdefg -", min_size=1, max_size=8).filter(str.strip)


def test_aliases_have_the_id_of_their_class():
    vocabulary = Vocabulary(["Stop Sign, stopsign", "dog", "gray,grey , GREY"])
    assert vocabulary.names == ["stop sign", "dog", "gray"]
    assert vocabulary.aliases == [("stopsign",), (), ("grey",)]
    assert [vocabulary.id(name) for name in ("stop sign", "StopSign ", "dog", " grey", "cat", "")] == [
        0,
        0,
        1,
        2,
        None,
        None,
    ]
    assert len(vocabulary) == 3


@given(st.lists(WORDS.map(lambda word: word.strip().lower()), min_size=1, max_size=30, unique=True), st.data())
def test_what_is_written_is_read(tmp_path_factory, words, data):
    lines = []
    while words:
        count = data.draw(st.integers(1, len(words)))
        lines.append(",".join(words[:count]))
        words = words[count:]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    Vocabulary(lines).write(path)
    assert Vocabulary.read(path) == Vocabulary(lines)
    assert Vocabulary.read(path).lines == lines


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "vocab.txt.gz"
    path.write_bytes(gzip.compress(b"a,b\nc"))
    assert Vocabulary.read(path).lines == ["a,b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"dog\n\ncat\n", "line 2 has no name"),
        (b"dog\n, ,\n", "line 2 has no name"),
        (b"dog\ncat,Dog\n", "line 2: 'dog' is also in line 1"),
        (b"\xff\xfe\x00", "is not a complete text file"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)


def test_damaged_gzip_and_missing_file(tmp_path):
    path = tmp_path / "vocab.txt.gz"
    path.write_bytes(gzip.compress(b"a,b\nc" * 1000)[:-12])
    with pytest.raises(InputError, match="is not a complete gzip file"):
        Vocabulary.read(path)
    with pytest.raises(InputError, match=r"none\.txt: no such file"):
        Vocabulary.read(tmp_path / "none.txt")
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be read: Is a directory"):
        Vocabulary.read(tmp_path)


def test_the_content_of_a_gzip_file_is_bounded(tmp_path):
    path = tmp_path / "vocab.txt.gz"
    path.write_bytes(gzip.compress(b"a" * MAX_UNPACKED))
    assert len(read_list(path)) == MAX_UNPACKED
    path.write_bytes(gzip.compress(b"a" * (MAX_UNPACKED + 1)))
    with pytest.raises(InputError, match=r"vocab\.txt\.gz: holds more than \d+ bytes; unpack it with gunzip"):
        Vocabulary.read(path)


@pytest.mark.parametrize(("file", "classes", "names"), [("objects", 1600, 1625), ("attributes", 400, 410)])
def test_published_vocabularies(shared_data, file, classes, names):
    vocabulary = Vocabulary.read(shared_data / "visual_genome" / f"{file}_vocab.txt")
    assert len(vocabulary) == classes
    assert classes + sum(map(len, vocabulary.aliases)) == names
    assert all(vocabulary.id(name) == class_id for class_id, name in enumerate(vocabulary.names))


def test_published_relations_repeat_a_name_in_a_line(shared_data):
    assert len(Vocabulary.read(shared_data / "visual_genome" / "relations_vocab.txt")) == 20


def test_background_is_an_object_of_the_published_vocabulary(shared_data):
    assert Vocabulary.read(shared_data / "visual_genome" / "objects_vocab.txt").id("background") == 956
