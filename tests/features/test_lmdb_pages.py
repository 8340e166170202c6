"""The check of an LMDB's pages accepts what LMDB writes, and refuses what would end the process or spoil the file."""

import random
import struct

import lmdb
import pytest

from bua.features.lmdb_pages import check_pages

PAGE = 4096
# Where meta pages have the flags of the tree of free pages, and of the tree of entries.
FREE_FLAGS, FLAGS = 16 + 24 + 4, 16 + 24 + 48 + 4
ROOT, TRANSACTION = 16 + 24 + 48 + 40, 16 + 24 + 96 + 8


@pytest.mark.parametrize("seed", range(4))
def test_what_lmdb_writes_is_accepted(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(2):
        with lmdb.open(str(tmp_path), map_size=1 << 26, sync=False) as environment:
            for _ in range(8):
                with environment.begin(), environment.begin(write=True) as transaction:
                    for _ in range(rng.choice([1, 5, 100])):
                        key = str(rng.randrange(100)).encode() * rng.choice([1, 5])
                        if rng.random() < 0.4:
                            transaction.delete(key)
                        else:
                            transaction.put(key, bytes(rng.choice([0, 1, 100, 2000, 4080, 4096, 20000])))
                check_pages(tmp_path / "data.mdb")
                check_pages(tmp_path / "data.mdb", writing=True)


@pytest.fixture
def content(tmp_path):
    """The bytes of an LMDB with a short and a long value, and with free pages."""
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as environment:
        for length in (20000, 9000):
            with environment.begin(write=True) as transaction:
                transaction.put(b"long", bytes(length))
                transaction.put(b"short", b"value")
        with environment.begin(write=True) as transaction:
            transaction.put(b"short", b"other")
    return bytearray((tmp_path / "db" / "data.mdb").read_bytes())


def _newest(content: bytearray) -> int:
    return max(0, PAGE, key=lambda page: struct.unpack_from("<Q", content, page + TRANSACTION)[0])


def _root(content: bytearray) -> int:
    return PAGE * struct.unpack_from("<Q", content, _newest(content) + ROOT)[0]


def _node(content: bytearray, key: bytes) -> int:
    """Returns where the node of a key is, which begins with the size of its value, flags and the size of the key."""
    return content.index(key, _root(content)) - 8


def _long_value(content: bytearray) -> int:
    return struct.unpack_from("<Q", content, _node(content, b"long") + 8 + 4)[0]


def _free_list(content: bytearray) -> int:
    """Returns where the list of free pages of the newest transaction that has one is: its length, and the pages."""
    root = PAGE * struct.unpack_from("<Q", content, _newest(content) + ROOT - 48)[0]
    return root + struct.unpack_from("<H", content, root + 16)[0] + 16


@pytest.mark.parametrize(
    ("place", "value", "reading"),
    [
        (lambda content: _newest(content) + FLAGS, 4, True),  # several values of a key
        (lambda content: _newest(content) + FLAGS, 8, True),  # keys are integers
        (lambda content: _newest(content) + FREE_FLAGS, 12, False),
        (lambda content: _newest(content) + FREE_FLAGS, 0, False),
        (lambda content: _node(content, b"short") + 4, 2, True),  # a database within the database
        (lambda content: _node(content, b"short") + 4, 4, True),
        (lambda content: _root(content) + 10, 0x22, True),  # a page of keys without nodes
        (lambda content: PAGE * _long_value(content) + 12, 1, False),  # fewer pages than the value has
        (lambda content: PAGE * _long_value(content) + 12, 255, False),
        (lambda content: PAGE * _long_value(content) + 10, 2, False),
        (lambda content: _free_list(content) + 8, None, False),  # the page of a value, in the list of free pages
    ],
)
def test_damage_is_refused(tmp_path, content, place, value, reading):
    path = tmp_path / "data.mdb"
    path.write_bytes(content)
    check_pages(path, writing=True)
    content[place(content)] = _long_value(content) if value is None else value
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        check_pages(path, writing=True)
    if reading:
        with pytest.raises(ValueError, match="truncated or damaged"):
            check_pages(path)
    else:
        check_pages(path)
