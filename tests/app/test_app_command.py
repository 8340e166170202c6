"""The command `bua app`."""

import socket
import sys

import pytest

from bua.commands import main
from bua.weights.zoo import fetch


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'bottom-up-attention[app]'" in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_refused(capsys):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    if not fetch("shapes").is_file():
        pytest.skip("the models that come with the package are not there")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port, "--device", "cpu"]) == 2
    assert f"127.0.0.1:{port}: the page cannot be served here" in capsys.readouterr().err
