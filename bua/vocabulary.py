"""Vocabularies: class names, their aliases, and their class ids."""

import gzip
import io
import zlib
from collections.abc import Iterable
from pathlib import Path

from bua.errors import InputError
from bua.regular_files import read_regular

# A few bytes of gzip can stand for gigabytes. The largest list, that of the training images, has 3.6 MB.
MAX_UNPACKED = 64 << 20


class Vocabulary:
    """Ordered class names. The id of a class is its position, counted from 0 without background and "no attribute".

    A vocabulary file has the format of the original (data/genome/1600-400-20/*_vocab.txt): one line per class, with
    names separated by commas. The first name is the one that is displayed; the others are aliases of the same class.

    Args:
        lines: One string per class, such as ``"stop sign,stopsign"``. Case and surrounding blanks do not matter.
        source: Name of the vocabulary in error messages.
        allow_empty: Whether there may be no classes, as where a data set has no attributes.

    Attributes:
        lines: The classes as in a vocabulary file, in lower case, without line ends.
        names: The displayed name of each class.
        aliases: The other names of each class: one tuple per class, which is usually empty.

    Raises:
        InputError: A line has no name, a name occurs in two lines, or there are no lines though there must be.
    """

    def __init__(self, lines: Iterable[str], source: str | Path = "vocabulary", *, allow_empty: bool = False):
        self.lines: list[str] = []
        self.names: list[str] = []
        self.aliases: list[tuple[str, ...]] = []
        self._ids: dict[str, int] = {}
        for class_id, line in enumerate(lines):
            names = list(dict.fromkeys(name for part in line.split(",") if (name := _normalise(part))))
            if not names:
                raise InputError(f"{source}: line {class_id + 1} has no name; write one class per line")
            for name in names:
                if name in self._ids:
                    first = self._ids[name] + 1
                    raise InputError(f"{source}: line {class_id + 1}: {name!r} is also in line {first}; remove one")
            self._ids.update(dict.fromkeys(names, class_id))
            self.lines.append(",".join(names))
            self.names.append(names[0])
            self.aliases.append(tuple(names[1:]))
        if not self.lines and not allow_empty:
            raise InputError(f"{source}: is empty; write one class per line")

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Reads a vocabulary file (.txt, or .txt.gz)."""
        return cls(read_lines(path), source=path)

    def write(self, path: str | Path) -> None:
        """Writes a vocabulary file that ``read`` reads back."""
        Path(path).write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")

    def id(self, name: str) -> int | None:
        """Returns the id of the class with this name or alias, or None if there is no such class."""
        return self._ids.get(_normalise(name))

    def __len__(self) -> int:
        return len(self.lines)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.lines == other.lines

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} classes: {', '.join(self.names[:3])}, ...)"


def read_lines(path: str | Path) -> list[str]:
    """Returns the lines of a UTF-8 text file, which is compressed with gzip if its name ends in .gz.

    Raises:
        InputError: As for ``read_list``, or the file is not text.
    """
    try:
        return read_list(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a complete text file ({error}); get it again") from error


def read_list(path: str | Path) -> bytes:
    """Returns the content of a file of lines, which is compressed with gzip if its name ends in .gz.

    Raises:
        InputError: There is no such file, it cannot be read, or the gzip file is damaged or holds more than
            ``MAX_UNPACKED`` bytes.
    """
    path = Path(path)
    try:
        data = read_regular(path)
        if path.suffix != ".gz":
            return data
        with gzip.open(io.BytesIO(data)) as file:
            content = file.read(MAX_UNPACKED + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is not a complete gzip file ({error}); get it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_UNPACKED:
        raise InputError(f"{path}: holds more than {MAX_UNPACKED} bytes; unpack it with gunzip if it is what you want")
    return content


def find_lines(path: str | Path) -> Path | None:
    """Returns the file that ``read_lines`` is to read: ``path``, or else ``<path>.gz``; None if there is neither."""
    plain = Path(path)
    packed = plain.with_name(f"{plain.name}.gz")
    return next((file for file in (plain, packed) if file.exists()), None)


def _normalise(name: str) -> str:
    return name.strip().lower()
