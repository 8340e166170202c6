import os
from pathlib import Path

import pytest

import bua  # noqa: F401  before any test imports torch: it sets how OpenMP waits


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real and golden data that is kept beside the repository, not in it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BUA_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"golden data not at {path}; set BUA_SHARED_DATA to its folder")
    return path
