"""Functions that damage the bytes of files. Each takes a random generator and the content, and returns new content."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random

# The files of a case by their names relative to its folder.
Files = dict[str, bytes]
Mutation = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1)
# Numbers as text. The names of images and ids of records are looked up as they stand, so that long ones matter too.
TEXT_NUMBERS = (
    b"0", b"-1", b"1e400", b"nan", b"inf", b"-inf", b"0.5", b"", b"99999999999", b"-9223372036854775809",
    b"18446744073709551616", b"9" * 400, b"9" * 5000, b"0x10", b"1_0", b"\xd9\xa3",
)  # fmt: skip
NAMES = (
    b"", b".", b"..", b"../escaped", b"../../escaped", b"/tmp/bua_fuzz_escaped", b"a/b", b"a\x00b", b"\xff\xfe",
    b"\x1b[2J\x1b]0;title\x07", b"%2e%2e%2fescaped", b"x" * 300, b"\xe2\x80\xae", b"keys", b"NUL", b"\xed\xa0\x80",
)  # fmt: skip
# Values of any type, in place of a value of a JSON. The text of the first two is put in as it stands, since Python's
# json does not write such numbers.
RAW_VALUES = {"<digits>": "9" * 5000, "<float>": "1e999"}
VALUES = (
    *RAW_VALUES, None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    float("nan"), float("inf"), "", "0", "1", "x", "\x00", "\ud800", "../escaped", "/", "x" * 300, [], {}, [[]], [None],
    {"": None}, [0, 0, 0, 0], [1, 2, 3], {"id": 1},
)  # fmt: skip


def mutate_files(random: Random, files: Files, mutate: Mutation) -> Files:
    """Applies a mutation to one of the files, and rarely removes, empties or exchanges files."""
    files = dict(files)
    name = random.choice(sorted(files))
    what = random.random()
    if len(files) > 1 and what < 0.03:
        del files[name]
    elif what < 0.05:
        files[name] = b""
    elif len(files) > 1 and what < 0.08:
        files[name] = files[random.choice(sorted(files))]
    else:
        files[name] = mutate(random, files[name])
    return files


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Applies one to three mutations to content of any kind."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(BYTE_MUTATIONS)(random, data)
    return data


def mutate_zip(random: Random, data: bytes) -> bytes:
    """Mutates a member of a zip archive, such as npz, and writes the archive anew, so that its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members = mutate_files(random, members, mutate_bytes)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def mutate_png(random: Random, data: bytes) -> bytes:
    """Mutates the chunks of a PNG and corrects their checksums, so that a decoder uses what they say."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    place = random.randrange(len(chunks))
    kind, content = chunks[place]
    chunks[place] = (kind, mutate_bytes(random, content))
    if random.random() < 0.1:
        chunks.insert(random.randrange(len(chunks)), random.choice(chunks))
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def mutate_json(random: Random, data: bytes) -> bytes:
    """Replaces, removes, adds or repeats values of a JSON; or mutates its text."""
    if random.random() < 0.25:
        return mutate_text(random, data)
    tree = json.loads(data)
    for _ in range(random.choice((1, 1, 2))):
        tree = _mutate_tree(random, tree)
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5)
    for mark, raw in RAW_VALUES.items():
        text = text.replace(f'"{mark}"', raw)
    if random.random() < 0.02:
        depth = random.choice((500, 5000, 200_000))
        text = "[" * depth + text + "]" * depth
    return text.encode("utf-8", "surrogatepass")


def mutate_text(random: Random, data: bytes) -> bytes:
    """Mutates lines, cells, numbers and names of a text; or its bytes."""
    return random.choice((mutate_bytes, _change_number, _change_cell, _change_lines))(random, data)


def _flip_bits(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set_bytes(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 4, 16)) if data else 0):
        changed[_place(random, data)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return bytes(changed)


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: _place(random, data)]


def _cut_out(random: Random, data: bytes) -> bytes:
    start = _place(random, data)
    return data[:start] + data[start + _length(random, data) :]


def _repeat(random: Random, data: bytes) -> bytes:
    start = _place(random, data)
    piece = data[start : start + _length(random, data)]
    return data[:start] + piece * random.choice((1, 2, 20)) + data[start:]


def _move(random: Random, data: bytes) -> bytes:
    """Overwrites a part with another part of the same file."""
    start, target = _place(random, data), _place(random, data)
    piece = data[start : start + _length(random, data)]
    return data[:target] + piece + data[target + len(piece) :]


def _zero_block(random: Random, data: bytes) -> bytes:
    """Fills a block with zeros, as a crash of a file system can leave it."""
    size = random.choice((16, 512, 4096))
    start = _place(random, data) // size * size
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


def _add_noise(random: Random, data: bytes) -> bytes:
    start = random.choice((0, len(data), _place(random, data)))
    return data[:start] + random.randbytes(random.choice((1, 4, 100, 5000))) + data[start:]


def _set_number(random: Random, data: bytes) -> bytes:
    """Writes a binary number, as it may be a size, a count or a position."""
    size = random.choice((1, 2, 4, 8))
    place = _place(random, data)
    order = random.choice(("little", "big"))
    number = random.choice(NUMBERS)
    if random.random() < 0.4:
        number = int.from_bytes(data[place : place + size], order) + random.choice((-1, 1, 8, 1000))
    return data[:place] + (number % 256**size).to_bytes(size, order) + data[place + size :]


def _change_number(random: Random, data: bytes) -> bytes:
    """Replaces a decimal number in a text."""
    places = [place for place, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
    if not places:
        return mutate_bytes(random, data)
    start = end = random.choice(places)
    while start and data[start - 1 : start].isdigit():
        start -= 1
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + random.choice(TEXT_NUMBERS) + data[end:]


def _change_cell(random: Random, data: bytes) -> bytes:
    """Replaces a cell of a row that tabs or blanks divide."""
    lines = data.split(b"\n")
    row = random.randrange(len(lines))
    separator = random.choice((b"\t", b"\t", b" ", b","))
    cells = lines[row].split(separator)
    cells[random.randrange(len(cells))] = random.choice((*NAMES, *TEXT_NUMBERS, random.choice(cells)))
    lines[row] = separator.join(cells)
    return b"\n".join(lines)


def _change_lines(random: Random, data: bytes) -> bytes:
    """Removes, repeats or exchanges lines."""
    lines = data.split(b"\n")
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    what = random.randrange(4)
    if what == 0:
        del lines[first]
    elif what == 1:
        lines.insert(first, lines[second])
    elif what == 2:
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines[first] = random.choice(NAMES)
    return b"\n".join(lines)


BYTE_MUTATIONS: Sequence[Mutation] = (
    _flip_bits,
    _set_bytes,
    _truncate,
    _cut_out,
    _repeat,
    _move,
    _zero_block,
    _add_noise,
    _set_number,
    _set_number,
)


def _place(random: Random, data: bytes) -> int:
    """Returns a position, often near the start or the end, where headers and directories are."""
    if not data:
        return 0
    where = random.random()
    if where < 0.3:
        return random.randrange(min(len(data), 256))
    if where < 0.5:
        return len(data) - 1 - random.randrange(min(len(data), 256))
    return random.randrange(len(data))


def _length(random: Random, data: bytes) -> int:
    return random.choice((1, 2, 8, random.randrange(64) + 1, random.randrange(len(data) + 1)))


def _mutate_tree(random: Random, tree: object) -> object:
    """Changes a value of parsed JSON in place, and returns the tree."""
    containers: list[tuple[dict | list, object]] = []
    _collect(tree, containers)
    if not containers:
        return deepcopy(random.choice(VALUES))
    container, key = random.choice(containers)
    other_container, other_key = random.choice(containers)
    what = random.random()
    if what < 0.15:
        del container[key]
    elif what < 0.3:
        container[key] = deepcopy(other_container[other_key])
    elif what < 0.4 and isinstance(container, list):
        container.insert(key, deepcopy(container[key]))
    elif what < 0.5 and isinstance(container, dict):
        container[random.choice((other_key if isinstance(other_key, str) else "x", "", "\x00"))] = container.pop(key)
    else:
        container[key] = deepcopy(random.choice(VALUES))
    return tree


def _collect(tree: object, found: list) -> None:
    """Lists each value of a tree as the container that holds it and its key there."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            found.append((tree, key))
            _collect(value, found)
