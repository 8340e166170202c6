import os
from pathlib import Path

import pytest

import bua  # noqa: F401  imported before any test imports torch, since it sets how OpenMP's threads wait


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real and golden data, which is next to the repository and not part of it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BUA_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"there is no golden data at {path}; set BUA_SHARED_DATA to its folder")
    return path
