"""Finds and reads the YAML files of configurations. Those of ``configs/`` are part of the package."""

import copy
import difflib
import itertools
import math
import os
from pathlib import Path

import yaml

from bua.errors import InputError

# A wheel holds the files of configs/ in the package; a checkout holds them beside it.
_PACKAGE = Path(__file__).parent
FOLDER = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
# The most values that a configuration may have when its aliases are replaced by what they stand for.
_MOST_VALUES = 100_000


def find_config(name: str | Path) -> Path:
    """Returns the path of a configuration file.

    Args:
        name: A file, or the name of one in ``configs/``, such as "vg_r101.yaml", "vqa/updown.yaml" or
            "configs/vg_r101.yaml".

    Raises:
        InputError: There is no such file.
    """
    path = Path(name)
    # Unlike Path.is_file, os.path.isfile never raises, for example for a name that is too long.
    if os.path.isfile(path):
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    if not path.is_absolute() and ".." not in parts and os.path.isfile(FOLDER.joinpath(*parts)):
        return FOLDER.joinpath(*parts)
    names = [str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml")]
    if os.path.isdir(path.parent):
        names += map(str, path.parent.glob("*.yaml"))
    close = difflib.get_close_matches("/".join(parts), names, n=1)
    hint = f"; did you mean {close[0]}?" if close else "; give a path, or the name of a file in configs/"
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{path}: is not a regular file; name a YAML file")
    raise InputError(f"{path}: this config file does not exist{hint}")


def read_config(path: Path, including: tuple[Path, ...] = (), read: dict[Path, dict] | None = None) -> dict:
    """Returns the content of a configuration file. If it names other files as ``_BASE_``, their content is applied
    first, in their order, and its own keys replace theirs.

    Args:
        path: The file. A base is named relative to its folder, or as for ``find_config``.
        including: Files that are based on this one.
        read: The content of the files that have been read for the same configuration: several files of it can have the
            same base, which would otherwise be read again for each way that leads to it.

    Raises:
        InputError: The file, or one that it is based on, does not exist, is not YAML or is not a mapping, or is based
            on itself.
    """
    read = {} if read is None else read
    if path.resolve() in read:
        return copy.deepcopy(read[path.resolve()])
    if path.resolve() in including:
        raise InputError(f"{path}: its _BASE_ refers back to the file itself")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a config file: the top level must be a mapping such as MODEL:")
    bases = tree.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: _BASE_ is {str(bases)[:80]!r}; give the name of a file, or a list of names")
    content: dict = {}
    for base in bases:
        beside = path.parent / os.path.expanduser(base)
        try:
            found = beside if os.path.isfile(beside) else find_config(base)
        except InputError as error:
            raise InputError(f"{path}: _BASE_ names {base}, which is not a file") from error
        _replace(content, read_config(found, (*including, path.resolve()), read), str(path))
    _replace(content, tree, str(path))
    read[path.resolve()] = copy.deepcopy(content)
    return content


def is_of_detectron2_alone(path: Path) -> bool:
    """Returns whether a configuration file is one of Detectron2 that knows nothing of bua: it names ROI heads that are
    not bua's, and has no key under MODEL.BUA.

    Raises:
        InputError: As for ``read_config``.
    """
    model = read_config(path).get("MODEL")
    heads = model.get("ROI_HEADS") if isinstance(model, dict) else None
    name = heads.get("NAME") if isinstance(heads, dict) else None
    return isinstance(model, dict) and name is not None and not str(name).startswith("Attribute") and "BUA" not in model


def parse_yaml(text: str, source: str) -> object:
    """Returns the content of a YAML text: mappings, lists, strings and numbers, without objects of other kinds.

    Args:
        source: Name of the text, for messages.

    Raises:
        InputError: The text is not YAML, holds objects of other kinds, or has aliases that stand for very many values.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return None
        if _expanded_size(root, {}) > _MOST_VALUES:
            raise InputError(f"{source}: its aliases (*name) stand for too many values; write them out")
        return yaml.SafeLoader("").construct_document(root)
    # For values that their tags do not fit, such as !!bool 7, yaml raises Python's own errors.
    except InputError:
        raise
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{source}: not a YAML file of mappings, lists, texts and numbers alone: {' '.join(str(error).split())}"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{source}: not a YAML file: {' '.join(str(error).split())}") from error


def _expanded_size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Returns how many values a node has when aliases are replaced by what they stand for; infinity for one that
    contains itself.

    Args:
        sizes: The sizes that are known, by the ids of the nodes.
    """
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        children = () if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = itertools.chain.from_iterable(children)
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in children)
    return sizes[id(node)]


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
