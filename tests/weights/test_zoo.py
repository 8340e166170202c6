import functools
import io
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import LocalEntryNotFoundError

import bua.weights.cache
from bua.checkpoint import load_checkpoint
from bua.config import load_cfg
from bua.download import fetch as download_file
from bua.errors import InputError
from bua.io.files import Locked, exclusive
from bua.modeling import build_detector
from bua.weights import zoo
from bua.weights.cache import place_of
from bua.weights.zoo import ZOO, fetch

UNREACHABLE = "http://127.0.0.1:9"  # the "discard" port, on which no server listens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(bua.weights.cache, "WAIT", 0)
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
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        http.shutdown()
        thread.join()


def test_paths_are_returned_as_they_are(tmp_path):
    assert fetch(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert fetch("model_final.pth") == Path("model_final.pth")


def test_a_folder_does_not_hide_weights_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    (tmp_path / "my.output").mkdir()
    assert fetch("shapes").is_file()
    with pytest.raises(InputError, match=r"my\.output: is a folder; name the checkpoint file in it"):
        load_checkpoint("my.output")


def test_an_address_is_fetched_once(server, cache):
    address, requests = server
    assert load_checkpoint(f"{address}/a.pth")["a"].tolist() == [1, 1]
    path = fetch(f"{address}/a.pth")
    assert path.parent.parent == cache / "bua" / "addresses"
    assert (path.parent.name[:10], path.name) == ("127.0.0.1-", "a.pth")
    assert requests == ["/a.pth"]


def test_the_whole_address_counts(server, cache):
    """Another host, port, query or scheme, and the path of an earlier version's cache, are another file."""
    address, requests = server
    (cache / "detectron2").mkdir(parents=True)
    (cache / "a.pth").write_bytes(b"of another server")
    port = address.rpartition(":")[2]
    addresses = [f"{address}/{name}" for name in ("a.pth", "a.pth?id=1", "a.pth?id=2", "sub/../a.pth", "%61.pth")]
    addresses.append(f"http://localhost:{port}/a.pth")
    paths = {fetch(one) for one in addresses}
    assert len(paths) == len(requests) == len(addresses)
    assert {path.read_bytes() for path in paths} == {(cache.parent / "www" / "a.pth").read_bytes()}
    assert fetch(f"{address}/a.pth#part") in paths
    with pytest.raises(InputError, match=r"put the file at \S+ \(\S+cache/a\.pth is a file of this name, but may be"):
        fetch(f"{UNREACHABLE}/a.pth")


@pytest.mark.parametrize(
    "rest",
    [
        *(
            "/../../.bashrc",
            "/%2e%2e/%2e%2e/.bashrc",
            "/..",
            "/.",
            "/",
            "",
            "/a/..%2f..%2fb",
            "//etc/passwd",
            "/a\\..\\b",
        ),
        *("/" + "x" * 5000 + ".pth", "/\u00e4/\u00e4", "/a?b=/../../c", "/~/a", "/-rf"),
    ],
)
def test_no_address_leaves_the_cache(cache, rest):
    path = place_of(f"http://host{rest}")
    assert path.parent.parent == cache / "bua" / "addresses"
    assert path.name.isascii()
    assert not path.name.startswith(".")
    assert len(path.name) <= 100
    assert path.parent.name.startswith("host-")


@pytest.mark.parametrize("content", [b"<!doctype html>\n<p>Not here.", b""])
def test_a_page_instead_of_weights_is_not_kept(server, cache, content):
    address, requests = server
    (cache.parent / "www" / "page.pth").write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"not the published file: it is (a web page|empty)") as error:
            fetch(f"{address}/page.pth")
        assert "\n" not in str(error.value)
    assert requests == ["/page.pth"] * 2
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_page_that_an_earlier_version_kept_is_replaced(server, cache, monkeypatch):
    address, _ = server
    monkeypatch.setitem(ZOO, "some", ZOO["caffe-r101-36"]._replace(file="a.pth", addresses=(f"{address}/a.pth",)))
    path = cache / "bua" / "some" / "a.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>log in</html>")
    assert load_checkpoint("some")["a"].tolist() == [1, 1]


def test_a_file_that_changed_is_refused(server):
    address, requests = server
    path = fetch(f"{address}/a.pth")
    os.utime(path, (1, 1))
    assert fetch(f"{address}/a.pth") == path  # only its time changed, which is recorded
    assert json.loads(path.with_name("a.pth.checksum").read_text())["modified_ns"] == 10**9
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    message = r"a\.pth: is not the file that was downloaded or published \(sha256:\w{64}\); delete it"
    with pytest.raises(InputError, match=message):
        fetch(f"{address}/a.pth")
    path.unlink()
    assert fetch(f"{address}/a.pth").read_bytes() == content
    assert requests == ["/a.pth"] * 2


def test_a_file_is_not_hashed_again(server, monkeypatch):
    address, _ = server
    path = fetch(f"{address}/a.pth")
    monkeypatch.setattr(bua.weights.cache, "file_checksum", None)
    assert fetch(f"{address}/a.pth") == path


def test_a_damaged_record_and_a_folder_without_permission_to_write(server, monkeypatch):
    address, _ = server
    path = fetch(f"{address}/a.pth")
    for text in ("", "[]", "[" * 100_000, '{"sha256": 5}'):
        path.with_name("a.pth.checksum").write_text(text)
        assert fetch(f"{address}/a.pth") == path
    path.with_name("a.pth.checksum").unlink()
    path.with_name("a.pth.checksum").mkdir()
    assert fetch(f"{address}/a.pth") == path
    path.with_name("a.pth.checksum").rmdir()
    os.mkfifo(path.with_name("a.pth.checksum"))
    assert fetch(f"{address}/a.pth") == path


def test_the_checksum_in_the_names_of_pytorch(monkeypatch):
    fetched = []

    def download(address, path, checksum):
        fetched.append(checksum)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        return path

    monkeypatch.setattr(zoo, "download", download)
    name = "https://download.pytorch.org/models/resnet101-cd907fc2.pth"
    assert fetch(name) == place_of(name)
    assert fetched == ["sha256:cd907fc2"]
    with pytest.raises(InputError, match=r"is not the file that was downloaded or published \(sha256:cd907fc2\)"):
        fetch(name)


def test_processes_that_ask_for_the_same_file_wait(server, caplog):
    address, requests = server
    path = place_of(f"{address}/a.pth")
    path.parent.mkdir(parents=True)
    with ThreadPoolExecutor() as threads:
        with exclusive(path), caplog.at_level("INFO"):
            others = [threads.submit(fetch, f"{address}/a.pth") for _ in range(2)]
            while caplog.text.count("is writing to it") < 2:
                pass
        assert [other.result() for other in others] == [path] * 2
    assert requests == ["/a.pth"]


def test_a_process_that_waited_for_one_that_failed_records_the_checksum(server, monkeypatch):
    address, requests = server
    answers = [Locked("another process is writing to it")]

    def download_by_another_first(*args, **options):
        # The other process holds the lock at first, and is killed before the file is there.
        if answers:
            raise answers.pop()
        return download_file(*args, **options)

    monkeypatch.setattr(bua.weights.cache, "fetch", download_by_another_first)
    path = fetch(f"{address}/a.pth")
    assert requests == ["/a.pth"]
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(InputError, match=r"a\.pth: is not the file that was downloaded or published \(sha256:"):
        fetch(f"{address}/a.pth")


def test_addresses_of_detectron2(server, cache, monkeypatch):
    address, requests = server
    monkeypatch.setattr(zoo, "_DETECTRON2", f"{address}/")
    assert fetch("detectron2://a.pth") == fetch(f"{address}/a.pth")
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
    assert f"{UNREACHABLE}/a.caffemodel: cannot be fetched (" in message
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
            r"/R-50\.pkl: cannot be fetched \(.*\); try again later; or put the file at .*cache/bua/.*/R-50\.pkl",
        ),
        ("s3://bucket/a.pth", "bua cannot download from this address"),
        (
            "caffe-r101-37",
            r"is neither a file nor the name of released weights; did you mean caffe-r101-36 or caffe-r101-10-100\?$",
        ),
        (
            "best",
            "is neither a file nor the name of released weights; use one of caffe-r101-10-100, caffe-r101-36,",
        ),
        *(
            (f"hf://{name}", r"is not hf://<owner>/<repository>\[/<file>\]; correct it")
            for name in (
                "unc-nlp",
                "",
                "../a",
                "a/..",
                "a/b/../c",
                "a/b/c/..",
                "a/b//c",
                "/a/b",
                "a/b/c\\..\\d",
                "a/b/\n",
            )
        ),
        ("http://127.0.0.1:99999/a.pth", "is not an address with http or https"),
        ("http://[::1/a.pth", "is not an address with http or https"),
        ("https:///a.pth", "is not an address with http or https"),
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


def test_without_a_network_each_retry_is_one_line_and_the_error_says_once_what_to_do(
    monkeypatch, tmp_path, hub, printed
):
    def without_network(*_):
        log = logging.getLogger("huggingface_hub.utils._http")
        for retry in range(1, 3):
            log.warning("'Name or service not known' thrown while requesting HEAD https://huggingface.co/a")
            log.warning("Retrying in %ds [Retry %d/2].", retry, retry)
        try:
            raise OSError("Name or service not known")
        except OSError as error:
            raise LocalEntryNotFoundError("Please check your connection and try again.") from error

    monkeypatch.setattr(zoo, "hf_hub_download", without_network)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        fetch("vinvl-x152c4")
    assert (
        printed.getvalue().splitlines()
        == ["'Name or service not known' thrown while requesting HEAD https://huggingface.co/a"] * 2
    )
    assert str(error.value).endswith(
        "vinvl_vg_x152c4.pth: cannot be downloaded (Name or service not known); try again later; get "
        f"vinvl_vg_x152c4.pth in another way and put it at {tmp_path}/bua/vinvl-x152c4/vinvl_vg_x152c4.pth"
    )
    assert hub.propagate
    assert not hub.handlers[0].filters


@pytest.fixture
def printed():
    return io.StringIO()


@pytest.fixture
def hub(printed, monkeypatch):
    """The logger of huggingface_hub with a handler of its own, while the root logger has one, too."""
    hub = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(hub, "handlers", [logging.StreamHandler(printed)])
    monkeypatch.setattr(hub, "propagate", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(printed)])
    return hub


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), OSError(5, "text"), type("ReadTimeout", (Exception,), {})()])
def test_whatever_huggingface_hub_raises_is_one_line(monkeypatch, error):
    monkeypatch.setattr(zoo, "hf_hub_download", lambda *_: exec("raise error", {"error": error}))
    with pytest.raises(InputError, match=r"hf://a/b: cannot be downloaded \(.+\)") as raised:
        fetch("hf://a/b")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ZOO)
def test_every_release_has_an_address_and_a_configuration(name):
    release = ZOO[name]
    assert release.addresses or release.gone
    assert Path("configs", release.config).is_file()


# Those of grid models and of EfficientDet: tests/modeling/test_grid_detector.py and test_efficientdet.py.
@pytest.mark.parametrize(
    "config", sorted({x.config for x in ZOO.values() if not x.config.startswith(("grid_feats/", "vg_efficientdet"))})
)
def test_every_configuration_of_a_release_builds_at_its_real_size(config, monkeypatch):
    monkeypatch.setattr("bua.config.DEVICES", ("meta",))
    with torch.device("meta"):
        detector = build_detector(load_cfg(f"configs/{config}", ["MODEL.DEVICE", "meta"]))
    assert detector.roi_heads.feature_dim == 2048
