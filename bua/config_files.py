"""Finds and reads the YAML files of configurations. Those of ``configs/`` are part of the package."""

import difflib
from pathlib import Path

import yaml

from bua.errors import InputError

# A wheel holds the files of configs/ in the package; a checkout holds them beside it.
_PACKAGE = Path(__file__).parent
FOLDER = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


def find_config(name: str | Path) -> Path:
    """Returns the path of a configuration file.

    Args:
        name: A file, or the name of one in ``configs/``, such as "vg_r101.yaml", "vqa/updown.yaml" or
            "configs/vg_r101.yaml".

    Raises:
        InputError: There is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    if not path.is_absolute() and ".." not in parts and FOLDER.joinpath(*parts).is_file():
        return FOLDER.joinpath(*parts)
    names = [str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml")]
    close = difflib.get_close_matches("/".join(parts), names, n=1)
    hint = f"; did you mean {close[0]}?" if close else "; give a path, or the name of a file in configs/"
    raise InputError(f"{path}: this config file does not exist{hint}")


def read_config(path: Path, including: tuple[Path, ...] = ()) -> dict:
    """Returns the content of a configuration file. If it names other files as ``_BASE_``, their content is applied
    first, in their order, and its own keys replace theirs.

    Args:
        path: The file. A base is named relative to its folder, or as for ``find_config``.
        including: Files that are based on this one.

    Raises:
        InputError: The file, or one that it is based on, does not exist, is not YAML or is not a mapping, or is based
            on itself.
    """
    if path.resolve() in including:
        raise InputError(f"{path}: its _BASE_ refers back to the file itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a config file: the top level must be a mapping such as MODEL:")
    bases = tree.pop("_BASE_", [])
    content: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        beside = path.parent / Path(base).expanduser()
        try:
            found = beside if beside.is_file() else find_config(base)
        except InputError as error:
            raise InputError(f"{path}: _BASE_ names {base}, which does not exist") from error
        _replace(content, read_config(found, (*including, path.resolve())), str(path))
    _replace(content, tree, str(path))
    return content


def _replace(content: dict, newer: dict, source: str, prefix: str = "") -> None:
    """Puts the keys of ``newer`` into ``content``, node by node."""
    for key, value in newer.items():
        old = content.get(key, value)
        if isinstance(old, dict) != isinstance(value, dict):
            raise InputError(
                f"{source}: {prefix}{key} is a node in one of this file and its _BASE_, and a value in the other"
            )
        if isinstance(value, dict):
            _replace(content.setdefault(key, {}), value, source, f"{prefix}{key}.")
        else:
            content[key] = value
