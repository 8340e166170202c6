import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fake_detector import FakeExtractorConfig, make_images
from shard_checks import assert_all_once

from bua.errors import InputError
from bua.extraction import Outcome, RegionChoice
from bua.extraction.cluster import RayCluster, connect_to_ray
from bua.extraction.shards import Shard, ShardFolder
from bua.features import open_features

ray = pytest.importorskip("ray", reason="Ray is not installed; run `pip install ray`")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 20)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Ray cluster on this machine, whose workers know this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, *Path(__file__).parents[2:3]))))
        with connect_to_ray(
            FakeExtractorConfig(), "local", a_folder(tmp_path_factory.mktemp("shards")), "cpu"
        ) as cluster:
            yield cluster


def a_folder(path, format="flat"):
    return ShardFolder(path, format, {"weights": "random"})


@pytest.fixture
def shards(tmp_path):
    return a_folder(tmp_path / "out.shards")


@pytest.fixture
def cluster(running, shards):
    def make(shard_size=5, shards=shards, **config):
        return RayCluster(FakeExtractorConfig(**config), shards, "cpu", shard_size)

    return make


def with_ids_of(images, events):
    """Returns events about files with other names as those about ``images``."""
    return [
        event if isinstance(event, Shard) else event._replace(image=images[event.image.image_id]) for event in events
    ]


def test_shards_together_are_what_one_device_does(cluster, images, shards, monkeypatch):
    monkeypatch.chdir(Path(images[0].path).parent)
    relative = [image._replace(path=Path(image.path).name) for image in images]
    events = list(cluster(shard_size=7)(relative))
    assert sorted(event.path for event in events if isinstance(event, Shard)) == shards.shards()
    assert len(shards.shards()) == 3
    assert_all_once(with_ids_of(images, events), images, shards)


def test_images_that_fail_have_a_reason(cluster, images, tmp_path, shards):
    (tmp_path / "text.jpg").write_text("no image")
    four = [*images[:3], images[3]._replace(path=str(tmp_path / "text.jpg"))]
    four[2] = four[2]._replace(image_id="tab\tid")
    events = list(cluster(shards=replace(shards, format="tsv"))(four))
    reasons = {event.image.image_id: event.reason for event in events if isinstance(event, Outcome)}
    assert "not an image" in reasons[3]
    assert "has a tab or line break" in reasons["tab\tid"]
    assert len(reasons) == 2


def test_a_worker_that_is_killed_in_the_middle_of_a_shard(cluster, images, tmp_path, shards):
    # An image that comes through a pipe keeps its worker busy until it is killed.
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with_pipe = [*images[:3], images[3]._replace(path=str(pipe)), *images[4:]]

    def kill_then_let_go():
        end = wait_for(lambda: open_if_read(pipe))
        wait_for(lambda: [p for p in shards.path.glob("*.attempt/features/index.bin") if p.stat().st_size])
        (worker,) = readers_of(pipe)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: readers_of(pipe) - {worker})
        os.write(end, Path(images[3].path).read_bytes())
        os.close(end)
        killed.append(worker)

    killed = []
    helper = threading.Thread(target=kill_then_let_go, daemon=True)
    helper.start()
    events = list(cluster(shard_size=10)(with_pipe))
    helper.join(60)
    assert len(killed) == 1
    assert_all_once(with_ids_of(images, events), images, shards)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def open_if_read(pipe):
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def readers_of(path):
    """The ids of other processes that have a file open."""
    readers = set()
    for link in Path("/proc").glob("[1-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == path:
                readers.add(int(link.parts[2]))
    return readers - {os.getpid()}


def test_an_image_that_kills_every_worker_is_found_and_marked_as_failed(cluster, images, shards, monkeypatch, caplog):
    monkeypatch.setattr("bua.extraction.cluster.TASK_RETRIES", 0)
    events = list(cluster(shard_size=2, deadly=(5,))(images[:8]))
    assert_all_once(events, images[:8], shards, failed=(5,))
    assert "its worker was lost 1 times" in next(event.reason for event in events if isinstance(event, Outcome))
    assert caplog.text.count("a shard of ") == 2


class UnfitExtractorConfig(FakeExtractorConfig):
    def load_detector(self, device=None):
        raise InputError("weights: do not fit")


def test_a_wrong_config_or_a_bad_folder_is_one_line(cluster, images, tmp_path):
    unfit = cluster()
    unfit.config = UnfitExtractorConfig()
    with pytest.raises(InputError, match=r"^weights: do not fit$"):
        list(unfit(images))
    (tmp_path / "file").write_text("")
    unfit.shards = a_folder(tmp_path / "file" / "shards")
    with pytest.raises(InputError, match="cannot create this folder"):
        list(unfit(images))


def test_paths_of_a_config_are_absolute_for_other_machines(running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(FakeExtractorConfig(), config_file="a.yaml", weights="b.pth", choice=RegionChoice(boxes="c.json"))
    there = RayCluster(config, a_folder(Path("shards")), "cuda:1", 5)
    assert (there.config.config_file, there.config.weights) == (str(tmp_path / "a.yaml"), str(tmp_path / "b.pth"))
    assert there.config.choice.boxes == str(tmp_path / "c.json")
    assert (there.shards.path, there.device) == (tmp_path / "shards", "cuda")


def test_a_cluster_that_does_not_exist_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")
    with (
        pytest.raises(InputError, match=r"^--ray .*: no cluster there") as error,
        connect_to_ray(FakeExtractorConfig(), "nonsense", a_folder(tmp_path), "cpu"),
    ):
        pytest.fail("joined")
    assert "\n" not in str(error.value)


def test_usage_is_not_reported(running):
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("format", ["tsv", "hdf5"])
def test_shards_have_a_format_that_can_be_merged(cluster, images, shards, format):
    list(cluster(shard_size=20, shards=replace(shards, format=format), choice=RegionChoice(12, 12))(images))
    (shard,) = shards.shards()
    store = open_features(shard / "features")
    assert store.format == ("flat" if format == "hdf5" else format)
    assert set(store) == set(range(20))
    assert (shard / "failures.jsonl").read_text() == ""
