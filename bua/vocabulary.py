"""Class names and their aliases <-> class ids."""

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from bua.errors import InputError


class Vocabulary:
    """Ordered class names; class ids are their positions, from 0, without background and "no attribute".

    A vocabulary file is the original's (data/genome/1600-400-20/*_vocab.txt): a line a class, names separated by
    commas, the first of which is shown and the others of which mean the same class.

    Args:
        lines: one string a class, such as ``"stop sign,stopsign"``; case and surrounding blanks do not matter.
        source: what messages call the vocabulary.

    Attributes:
        lines: the classes as a vocabulary file has them, lower case, without line ends.
        names: the displayed name of each class.
        aliases: the further names of each class, a tuple each, mostly empty.

    Raises:
        InputError: a line without a name, a name in two lines, no lines at all.
    """

    def __init__(self, lines: Iterable[str], source: str | Path = "vocabulary"):
        self.lines: list[str] = []
        self.names: list[str] = []
        self.aliases: list[tuple[str, ...]] = []
        self._ids: dict[str, int] = {}
        for class_id, line in enumerate(lines):
            names = list(dict.fromkeys(name for part in line.split(",") if (name := _normalise(part))))
            if not names:
                raise InputError(f"{source}: line {class_id + 1} has no name; a vocabulary has one class a line")
            for name in names:
                if name in self._ids:
                    first = self._ids[name] + 1
                    raise InputError(f"{source}: line {class_id + 1}: {name!r} is in line {first} too; remove one")
            self._ids.update(dict.fromkeys(names, class_id))
            self.lines.append(",".join(names))
            self.names.append(names[0])
            self.aliases.append(tuple(names[1:]))
        if not self.lines:
            raise InputError(f"{source}: empty; a vocabulary has one class a line")

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Reads a vocabulary file (.txt, or .txt.gz)."""
        return cls(read_lines(path), source=path)

    def write(self, path: str | Path) -> None:
        """Writes a vocabulary file that ``read`` reads back."""
        Path(path).write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")

    def id(self, name: str) -> int | None:
        """The class that a name or alias means, or None where there is none."""
        return self._ids.get(_normalise(name))

    def __len__(self) -> int:
        return len(self.lines)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.lines == other.lines

    __hash__ = None

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} classes: {', '.join(self.names[:3])}, ...)"


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, gzip where its name ends in .gz.

    Raises:
        InputError: no such file, not text, a damaged gzip file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        kind = "gzip" if path.suffix == ".gz" else "text"
        raise InputError(f"{path}: not a whole {kind} file ({error}); get it again") from error


def _normalise(name: str) -> str:
    return name.strip().lower()
