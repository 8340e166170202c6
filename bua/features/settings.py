"""The settings that features were extracted with, which are kept beside or in their files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bua.errors import InputError, shown
from bua.features.store import open_features
from bua.regular_files import read_regular

# The settings that a model trained on the features must find again: the limits on the number of regions, and the
# fingerprint of the detector's weights.
OF_MODELS = ("min_boxes", "max_boxes", "weights")


def settings_file(path: Path) -> Path:
    """Returns the file of settings beside features: ``<path>.meta.json``."""
    return path.with_name(f"{path.name}.meta.json")


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """Returns the settings that features were extracted with, from ``<path>.meta.json`` or from the header of a flat
    folder; None if neither has them.

    Raises:
        InputError: ``<path>.meta.json`` is not JSON, or the features cannot be opened.
    """
    file = settings_file(Path(path))
    if file.exists():
        try:
            settings = json.loads(read_regular(file))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file}: cannot be read as JSON ({error}); remove it to go on without it") from error
        return _checked(file, settings)
    settings = getattr(open_features(path), "about", {}).get("settings")
    return None if settings is None else _checked(path, settings)


def _checked(file: str | Path, settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise InputError(f"{file}: the settings are {shown(settings)} instead of an object {{...}}; remove them")
    return settings


def settings_for_model(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Returns those of ``OF_MODELS`` that are known of all of several files of features and equal in all of them.

    Raises:
        InputError: As ``read_settings``.
    """
    found = [read_settings(path) or {} for path in paths]
    return {
        name: found[0][name]
        for name in OF_MODELS
        if found and all(name in one and one[name] == found[0][name] for one in found)
    }
