from collections.abc import Iterator
from pathlib import Path

import pytest
from local_site import Site, local_site


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    with local_site() as server:
        yield server


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "folder" / "file.bin"
