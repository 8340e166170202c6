import functools
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from bua.checkpoint import load_checkpoint
from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import build_detector
from bua.weights import zoo
from bua.weights.zoo import ZOO, fetch

UNREACHABLE = "http://127.0.0.1:9"  # the "discard" port, on which no server listens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """The address of a web server on this machine, and the requests that it received. It serves a.pth."""
    folder, requests = tmp_path / "www", []
    folder.mkdir()
    torch.save({"a": torch.ones(2)}, folder / "a.pth")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    with HTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        http.shutdown()
        thread.join()


def test_paths_are_returned_as_they_are(tmp_path):
    assert fetch(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert fetch("model_final.pth") == Path("model_final.pth")


def test_an_address_is_fetched_once(server, cache):
    address, requests = server
    assert load_checkpoint(f"{address}/a.pth")["a"].tolist() == [1, 1]
    assert fetch(f"{address}/a.pth") == cache / "a.pth"
    assert requests == ["/a.pth"]


def test_addresses_of_detectron2(server, cache, monkeypatch):
    address, requests = server
    monkeypatch.setattr(zoo, "_DETECTRON2", f"{address}/")
    assert fetch("detectron2://a.pth") == cache / "a.pth"
    assert requests == ["/a.pth"]


def test_a_release_is_fetched_from_the_first_address_that_has_it(server, cache, monkeypatch):
    address, _ = server
    addresses = (f"{UNREACHABLE}/a.pth", f"{address}/none.pth", f"{address}/a.pth?download=1")
    monkeypatch.setitem(ZOO, "some", ZOO["caffe-r101-36"]._replace(file="a.pth", addresses=addresses))
    assert fetch("some") == cache / "bua" / "some" / "a.pth"
    assert load_checkpoint("some")["a"].tolist() == [1, 1]


def test_a_release_that_cannot_be_downloaded(cache, monkeypatch):
    release = ZOO["caffe-r101-36"]._replace(addresses=(f"{UNREACHABLE}/a.caffemodel",))
    monkeypatch.setitem(ZOO, "caffe-r101-36", release)
    with pytest.raises(InputError) as error:
        load_checkpoint("caffe-r101-36")
    message, expected = str(error.value), cache / "bua" / "caffe-r101-36" / release.file
    assert message.startswith("caffe-r101-36: https://storage.googleapis.com/")
    assert f"{UNREACHABLE}/a.caffemodel: cannot be downloaded (" in message
    assert message.endswith(f"get {release.file} in another way and put it at {expected}")
    assert "\n" not in message
    expected.parent.mkdir(parents=True, exist_ok=True)
    expected.write_bytes(b"got elsewhere")
    assert fetch("caffe-r101-36") == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            f"{UNREACHABLE}/R-50.pkl",
            r"/R-50\.pkl: cannot be downloaded \(.*\); try again, or put it at .*cache/R-50\.pkl",
        ),
        ("s3://bucket/a.pth", "bua cannot download from this address"),
        (
            "caffe-r101-37",
            "is neither a file nor the name of released weights; use one of caffe-r101-10-100, caffe-r101-36,",
        ),
        ("hf://unc-nlp", "cannot be downloaded"),
    ],
)
def test_addresses_that_cannot_be_fetched_are_reported(address, message):
    with pytest.raises(InputError, match=message) as error:
        fetch(address)
    assert "\n" not in str(error.value)


def test_addresses_of_hugging_face(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(zoo, "hf_hub_download", lambda *args: asked.append(args) or str(tmp_path / "file"))
    assert fetch("hf://unc-nlp/frcnn-vg-finetuned") == fetch("huggingface-r101-10-100") == tmp_path / "file"
    fetch("hf://owner/name/folder/model.bin")
    default = ("unc-nlp/frcnn-vg-finetuned", "pytorch_model.bin")
    assert asked == [default, default, ("owner/name", "folder/model.bin")]


def test_hugging_face_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = r"hf://unc-nlp/frcnn-vg-finetuned: cannot be downloaded .* in another way and give its path"
    with pytest.raises(InputError, match=message):
        fetch("hf://unc-nlp/frcnn-vg-finetuned")


@pytest.mark.parametrize("name", ZOO)
def test_every_release_has_an_address_and_a_configuration(name):
    release = ZOO[name]
    assert release.addresses or release.gone
    assert Path("configs", release.config).is_file()


@pytest.mark.parametrize("config", sorted({release.config for release in ZOO.values()}))
def test_every_configuration_of_a_release_builds_at_its_real_size(config):
    with torch.device("meta"):
        detector = build_detector(load_cfg(f"configs/{config}", ["MODEL.DEVICE", "meta"]))
    assert detector.roi_heads.feature_dim == 2048
