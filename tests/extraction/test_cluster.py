import errno
import functools
import os
import re
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_detector import FakeDetector, FakeExtractorConfig, has_ended, make_images, wait_for, waiting_at
from shard_checks import assert_all_once

from bua.errors import InputError
from bua.extraction import Outcome, RegionChoice
from bua.extraction import cluster as cluster_module
from bua.extraction.cluster import RayCluster, connect_to_ray
from bua.extraction.shards import Shard, ShardFolder, Written
from bua.features import open_features
from bua.features.flat import FlatWriter

ray = pytest.importorskip("ray", reason="Ray is not installed; run `pip install ray`")
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import (  # noqa: E402
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 20)


def started(start):
    """Returns what a function returns that starts processes of Ray.

    It is called again if they do not start within half a minute, as on a busy machine. Ray has no setting for this.
    """
    for _ in range(9):
        try:
            return start()
        except Exception as error:  # Ray raises Exception itself
            if "timed out" not in str(error):
                raise
    return start()


@pytest.fixture(scope="module")
def machines():
    """A Ray cluster of one machine, to which others can be added, and whose workers know this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, *Path(__file__).parents[2:3]))))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # On a busy machine, a worker and the head may take longer than a minute.
        patch.setenv("RAY_worker_register_timeout_seconds", "600")
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
        head = {"num_cpus": 2, "include_dashboard": False}
        cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def running(machines, tmp_path_factory):
    """The connection to the cluster."""
    folder = a_folder(tmp_path_factory.mktemp("shards"))
    with connect_to_ray(FakeExtractorConfig(), machines.address, folder, "cpu") as cluster:
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


def test_shards_together_are_what_one_device_does(cluster, images, shards, monkeypatch):
    monkeypatch.chdir(Path(images[0].path).parent)
    relative = [image._replace(path=Path(image.path).name) for image in images]
    events = list(cluster(shard_size=7)(relative))
    assert sorted(event.path for event in events if isinstance(event, Shard)) == shards.shards()
    assert len(shards.shards()) == 3
    events = [event if isinstance(event, Shard) else Written(images[event.image.image_id]) for event in events]
    assert_all_once(events, images, shards)


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
    gate, killed = tmp_path / "gate", []

    def kill_then_let_go():
        (worker,) = wait_for(lambda: waiting_at(gate))
        wait_for(lambda: [p for p in shards.path.glob("*.attempt/features/index.bin") if p.stat().st_size])
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(waiting_at(gate)) == 2)
        gate.touch()
        killed.append(worker)

    helper = threading.Thread(target=kill_then_let_go, daemon=True)
    helper.start()
    events = list(cluster(shard_size=10, gated=(3,), gate=str(gate))(images))
    helper.join(600)
    assert len(killed) == 1
    assert_all_once(events, images, shards)


def test_a_machine_that_is_lost_while_the_head_is_slow(
    machines, cluster, images, tmp_path, shards, caplog, monkeypatch
):
    """Three workers wait when the machine of one of them is killed, and the head stops for a moment.

    The worker of a machine that is killed lives on until it notices this. The others go on after that, or it would
    finish its shard.
    """
    gate, gone = tmp_path / "gate", []
    monkeypatch.setattr(cluster_module, "HEAD_SECONDS", 600)  # the head stops until the worker has ended
    machine = started(lambda: machines.add_node(num_cpus=1))
    (head,) = machines.head_node.all_processes["gcs_server"]

    def kill_then_let_go():
        wait_for(lambda: len(waiting_at(gate)) == 3)
        head.process.send_signal(signal.SIGSTOP)
        machines.remove_node(machine, allow_graceful=False)
        wait_for(lambda: [worker for worker in waiting_at(gate) if has_ended(worker)])
        head.process.send_signal(signal.SIGCONT)
        gate.touch()
        gone.append(machine)

    helper = threading.Thread(target=kill_then_let_go, daemon=True)
    helper.start()
    events = list(cluster(shard_size=5, gated=tuple(range(0, 20, 5)), gate=str(gate))(images))
    helper.join(600)
    assert gone == [machine]
    assert_all_once(events, images, shards)
    assert caplog.messages == ["a machine was lost; its shard of 5 images waits for another"]


class FullOnceExtractorConfig(FakeExtractorConfig):
    """The disk is full when one image is written, whichever worker does so first.

    The worker waits until three other shards are complete: a task that the failed run left behind would write its shard
    while the next run does.
    """

    def load_detector(self, device=None):
        append = FlatWriter.append

        def append_to_full_disk(writer, regions):
            if regions.image_id == 7 and not os.path.exists(self.loads):
                wait_for(lambda: len(a_folder(Path(self.loads).with_name("out.shards")).shards()) == 3)
                Path(self.loads).touch()
                raise OSError(errno.ENOSPC, "No space left on device")
            append(writer, regions)

        FlatWriter.append = append_to_full_disk
        return FakeDetector()


def test_a_full_disk_ends_the_run_with_one_line_and_the_next_one_completes_it(cluster, images, tmp_path, shards):
    full = cluster()
    full.config = FullOnceExtractorConfig(loads=str(tmp_path / "was full"))
    with pytest.raises(InputError, match=r"out.shards: cannot be written: No space left on device; make room and run"):
        list(full(images))
    assert not list(shards.path.glob("*.attempt/features/index.bin.*"))
    done = {image_id for shard in shards.shards() for image_id in open_features(shard / "features")}
    assert len(done) == 15
    events = list(full([image for image in images if image.image_id not in done]))
    before = [Written(image) for image in images if image.image_id in done]
    assert_all_once(before + events, images, shards)


class ScriptedRay:
    """Runs the tasks of a cluster in this process, one after the other, and lets them end as a test says.

    Args:
        end: Returns the error with which a task ends, from the ids of its images, or None.
    """

    def __init__(self, end, monkeypatch):
        self.end, self.tasks, self.node, self.alive = end, {}, "a", {"a": True}
        for name in ("wait", "get", "nodes", "remote"):
            monkeypatch.setattr(ray, name, getattr(self, name))
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: self.node))

    def remote(self, **options):
        assert options["max_retries"] == 0
        return lambda function: SimpleNamespace(remote=functools.partial(self.start, function))

    def start(self, *task):
        reference = object()
        self.tasks[reference] = task
        return reference

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        function, *arguments = self.tasks.pop(reference)
        images, shards, shard = arguments[2:]
        if error := self.end([image.image_id for image in images]):
            shards.path.joinpath(f"{shard.stem}.{self.node}.1.attempt").mkdir(exist_ok=True)
            raise error
        function(*arguments)

    def nodes(self):
        return [{"NodeID": node, "Alive": alive, "Resources": {"CPU": 1.0}} for node, alive in self.alive.items()]


@pytest.fixture
def scripted(shards, monkeypatch):
    """Returns a function that extracts images on a ``ScriptedRay`` in shards of a size, and returns the events."""

    def extract(images, end, shard_size=5, alive=None):
        script = ScriptedRay(end, monkeypatch)
        script.alive |= alive or {}
        return list(RayCluster(FakeExtractorConfig(), shards, "cpu", shard_size)(images))

    return extract


def errors_in_turn(*errors):
    errors = list(errors)
    return lambda ids: errors.pop(0) if errors else None


def test_shards_of_lost_machines_are_not_divided_and_no_image_is_to_blame(scripted, images, shards, caplog):
    events = scripted(images, errors_in_turn(*[NodeDiedError("lost") for _ in range(12)]), shard_size=7)
    assert_all_once(events, images, shards)
    assert {record.message.split(";")[0] for record in caplog.records} == {"a machine was lost"}


def test_a_worker_that_dies_on_a_machine_that_is_lost_is_not_to_blame(scripted, images, shards, monkeypatch):
    monkeypatch.setattr(cluster_module, "TASK_RETRIES", 0)
    events = scripted(images[:1], errors_in_turn(*[WorkerCrashedError()] * 5), alive={"a": False, "b": True})
    assert_all_once(events, images[:1], shards)


@pytest.mark.parametrize("died", [WorkerCrashedError(), OutOfMemoryError("memory")])
def test_an_image_is_to_blame_where_workers_die_at_it_alone(scripted, images, shards, died):
    deaths = []

    def end(ids):
        if 5 in ids:
            deaths.append(ids)
            return died
        return None

    events = scripted(images[:8], end, shard_size=8)
    assert_all_once(events, images[:8], shards, failed=(5,))
    reason = f"its worker was lost 4 times ({type(died).__name__})"
    assert [event.reason for event in events if isinstance(event, Outcome)] == [reason]
    assert [len(ids) for ids in deaths] == [8] * 4 + [4] * 4 + [2] * 4 + [1] * 4
    assert not list(shards.path.glob("*.attempt"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerCrashedError(), "workers died at 11 images one after the other (WorkerCrashedError), so that the "),
        (NodeDiedError("lost"), "11 machines were lost one after the other while they worked on the shard of"),
        (LocalRayletDiedError(), "the Ray processes of this machine have ended; start them again and "),
        (RuntimeEnvSetupError("no\nroom"), "the cluster failed (RuntimeEnvSetupError: Failed to set up runtime"),
    ],
)
def test_what_is_no_fault_of_the_images_ends_the_run_with_one_line(scripted, images, error, message):
    with pytest.raises(InputError, match=rf"^--ray: {re.escape(message)}.*run the same command again to continue$"):
        scripted(images, lambda ids: error)


def test_a_cluster_without_machines_ends_the_run(monkeypatch, caplog):
    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster_module, "POLL_SECONDS", 0)
    monkeypatch.setattr(cluster_module, "MACHINE_SECONDS", -1)
    machines = cluster_module._Machines("cuda")
    machines.check()
    machines.check()
    assert caplog.messages == ["--ray: no machine with a GPU yet; waiting for one (or change --device)"]
    machines = cluster_module._Machines("cpu")
    machines.check()
    nodes[0]["Alive"] = False
    with pytest.raises(InputError, match=r"^--ray: no machine is left; start some, and run the same command again"):
        machines.check()


def test_a_head_that_is_lost_ends_the_run(monkeypatch):
    def failing():
        raise ray.exceptions.RaySystemError("no\nhead")

    for nodes, seconds, reason in (
        (threading.Event().wait, 0.01, "no answer for 0.01 seconds"),
        (failing, 300, "System error: no head"),
    ):
        monkeypatch.setattr(cluster_module, "HEAD_SECONDS", seconds)
        monkeypatch.setattr(ray, "nodes", nodes)
        with pytest.raises(InputError, match=rf"^--ray: the head of the cluster is lost \({reason}.*\); run the same"):
            cluster_module._Machines("cpu").check()


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
    Path("a.yaml").touch()  # not the name of a file of configs/ or of Detectron2's model zoo
    config = replace(FakeExtractorConfig(), config_file="a.yaml", weights="b.pth", choice=RegionChoice(boxes="c.json"))
    there = RayCluster(config, a_folder(Path("shards")), "cuda:1", 5)
    assert (there.config.config_file, there.config.weights) == (str(tmp_path / "a.yaml"), str(tmp_path / "b.pth"))
    assert there.config.choice.boxes == str(tmp_path / "c.json")
    assert (there.shards.path, there.device) == (tmp_path / "shards", "cuda")


def test_a_cluster_that_does_not_exist_or_does_not_start_is_one_line(tmp_path, monkeypatch):
    def connect(address):
        with connect_to_ray(FakeExtractorConfig(), address, a_folder(tmp_path), "cpu"):
            pytest.fail("joined")

    with pytest.raises(InputError, match=r"^--ray nonsense: no cluster there \(.*\); start one with .*$"):
        connect("nonsense")

    def init(**_):
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"^--ray local: no cluster there \(The current node timed out"):
        connect("local")


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1"])
def test_a_head_that_was_killed_is_one_line_without_a_wait(tmp_path, monkeypatch, address):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("looked for the head"))
    where = f"--ray {address}: no cluster there"
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        advice = r"start one with `ray start --head`, or change RAY_ADDRESS, which is 127\.0\.0\.1:1$"
    else:
        advice = "start one with `ray start --head`$"
    for seconds, reason in ((30, "Connection refused"), (0.01, "timed out")):
        if reason == "timed out":

            def wait(to, timeout):
                assert (to[1], timeout) == (1, 0.01)
                raise TimeoutError("timed out")

            monkeypatch.setattr(socket, "create_connection", wait)
        monkeypatch.setattr(cluster_module, "HEAD_SECONDS", seconds)
        with (
            pytest.raises(InputError, match=rf"^{where} \([0-9.]+:1 cannot be reached: {reason}\); {advice}"),
            connect_to_ray(FakeExtractorConfig(), address, a_folder(tmp_path), "cpu"),
        ):
            pytest.fail("joined")


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_ray_itself_starts_or_finds_is_not_looked_for(tmp_path, monkeypatch, address):
    def init(**options):
        raise ConnectionError(f"init {options['address']}")

    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(InputError, match=rf"no cluster there \(init {address}\)"),
        connect_to_ray(FakeExtractorConfig(), address, a_folder(tmp_path), "cpu"),
    ):
        pytest.fail("joined")


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
