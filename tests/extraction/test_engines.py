import pytest

from bua.errors import InputError
from bua.extraction.engines import choose_engine


@pytest.mark.parametrize("installed", [False, True])
def test_a_fetch_of_weights_that_fails_is_not_repeated_for_the_other_engine(monkeypatch, tmp_path, installed):
    fetched = []

    def fail(address, *_):
        fetched.append(address)
        raise InputError(f"{address}: the server refuses (404 Not Found)")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("bua.weights.zoo.download", fail)
    monkeypatch.setattr("bua.extraction.engines.has_detectron2", lambda: installed)
    monkeypatch.setattr("bua.extraction.engines.detectron2_plugin", lambda: pytest.fail("Detectron2 was imported"))
    with pytest.raises(InputError, match=r"refuses \(404 Not Found\)"):
        choose_engine(None, None, "http://127.0.0.1/own.pth")
    assert fetched == ["http://127.0.0.1/own.pth"]
