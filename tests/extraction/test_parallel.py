import errno
import multiprocessing
import os
import pickle
import signal
import threading
import time

import pytest
from fake_detector import FakeExtractorConfig, make_images, wait_for, waiting_at
from shard_checks import assert_all_once

from bua.errors import InputError
from bua.extraction import ExtractorConfig, Outcome, RegionChoice, parallel
from bua.extraction.parallel import CLOSE_SHARD, MAX_DEATHS, devices_of, run_worker, start_device_pool
from bua.extraction.shards import Shard, ShardFolder, Written
from bua.features import open_features
from bua.features.flat import FlatWriter


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 130)


@pytest.fixture
def shards(tmp_path):
    return ShardFolder(tmp_path / "out.shards", "flat", {"weights": "random"})


@pytest.fixture
def start_pool(shards):
    def start(config, devices):
        return start_device_pool(config, devices, shards)

    return start


def test_two_processes_do_what_one_does(images, shards, start_pool, monkeypatch):
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 300)  # also on a busy machine, the processes end by themselves
    with start_pool(FakeExtractorConfig(batch_size=4), ["cpu", "cpu"]) as pool:
        events = list(pool(images))
        # Without deaths, all shards are complete at the end.
        assert sorted(event.path for event in events if isinstance(event, Shard)) == shards.shards()
        assert_all_once(events, images, shards)
        # It can be called again, and with fewer images than processes.
        assert_all_once(list(pool(images[:1])), images[:1], shards)
        assert list(pool([])) == []
        processes = [worker.process for worker in pool._workers]
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_process_that_is_killed_is_replaced_and_its_images_are_done_by_others(
    images, caplog, tmp_path, shards, start_pool
):
    some, gate = images[:60], tmp_path / "gate"
    config = FakeExtractorConfig(batch_size=2, num_workers=1, gated=(3,), gate=str(gate))
    with start_pool(config, ["cpu", "cpu"]) as pool:
        events, killed = [], []
        for event in pool(some):
            events.append(event)
            if not killed and len(events) > 10:
                wait_for(lambda: waiting_at(gate))
                killed = [worker.process for worker in pool._workers if worker.process.pid in waiting_at(gate)]
                os.kill(killed[0].pid, signal.SIGKILL)
                killed[0].join()
                gate.touch()
        assert len(pool._workers) == 2
        assert killed[0] not in [worker.process for worker in pool._workers]
    assert_all_once(events, some, shards)
    assert "the process on cpu died (exit code -9); other processes continue with its " in caplog.text


def test_images_that_kill_are_marked_as_failed_after_two_tries_each(
    images, caplog, tmp_path, shards, start_pool, monkeypatch
):
    # The three images may kill processes on one device one after the other.
    monkeypatch.setattr(parallel, "MAX_DEATHS", 7)
    deadly, loads = (5, 6, 100), tmp_path / "loads"
    with start_pool(FakeExtractorConfig(batch_size=2, deadly=deadly, loads=str(loads)), ["cpu", "cpu"]) as pool:
        events = list(pool(images))
        assert len(pool._workers) == 2
    # Processes that died left their shards, if they had one, maybe with an incomplete record at the end.
    assert {event.path for event in events if isinstance(event, Shard)} <= set(shards.shards())
    assert_all_once(events, images, shards, failed=deadly)
    reasons = [event.reason for event in events if isinstance(event, Outcome)]
    assert reasons == ["two processes died while they processed it, the second with exit code -9"] * len(deadly)
    # Two at the start, and one after every death. The first tries may kill the same process.
    deaths = caplog.text.count("died (exit code -9)")
    assert len(deadly) + 1 <= deaths <= 2 * len(deadly)
    assert len(loads.read_text().splitlines()) <= 2 + deaths


class SlowlyWritingExtractorConfig(FakeExtractorConfig):
    def load_detector(self, device=None):
        append = FlatWriter.append

        def append_slowly(writer, regions):
            time.sleep(0.01)
            append(writer, regions)

        FlatWriter.append = append_slowly
        return super().load_detector(device)


def test_an_image_that_kills_is_found_among_those_that_wait_to_be_written(images, caplog, shards, start_pool):
    with start_pool(SlowlyWritingExtractorConfig(deadly=(50,)), ["cpu"]) as pool:
        events = list(pool(images))
    assert_all_once(events, images, shards, failed=(50,))
    assert caplog.text.count("died (exit code -9)") == 2


def test_when_the_processes_on_all_devices_die_the_run_ends_with_one_line(images, caplog, start_pool):
    everything = tuple(range(len(images)))
    with (
        start_pool(FakeExtractorConfig(deadly=everything), ["cpu"]) as pool,
        pytest.raises(InputError, match=r"the processes on all devices died; (\d+) images are left") as error,
    ):
        list(pool(images))
    left = int(str(error.value).split(";")[1].split()[0])
    assert "\n" not in str(error.value)
    assert left + MAX_DEATHS - 1 == len(images)
    assert f"{MAX_DEATHS} processes died on cpu; 0 devices are left" in caplog.text


def test_devices_on_which_no_new_process_starts(images, caplog, tmp_path, start_pool):
    # Two detectors can be loaded; the next would be for processes that died, and kill theirs.
    config = FakeExtractorConfig(deadly=(20,), loads=str(tmp_path / "loads"), most_loads=2)
    outcomes = []
    with start_pool(config, ["cpu", "cpu"]) as pool:
        with pytest.raises(InputError, match="the processes on all devices died"):
            outcomes.extend(pool(images))
        assert pool._workers == []
    assert "died while it loaded the detector (exit code -9); 1 devices are left" in caplog.text
    assert [outcome.image.image_id for outcome in outcomes if isinstance(outcome, Outcome)] == [20]


class UnfitExtractorConfig(FakeExtractorConfig):
    def load_detector(self, device=None):
        raise InputError("weights: do not fit")


def test_a_wrong_config_is_reported_before_anything_is_done(tmp_path, start_pool):
    with (
        pytest.raises(InputError, match=r"^weights: do not fit$"),
        start_pool(UnfitExtractorConfig(), ["cpu", "cpu"]),
    ):
        pytest.fail("it is not ready")
    config = FakeExtractorConfig(loads=str(tmp_path / "loads"), most_loads=0)
    with (
        pytest.raises(InputError, match=r"died while it loaded the detector \(exit code -9\)"),
        start_pool(config, ["cpu"]),
    ):
        pytest.fail("it is not ready")


def test_stopping_in_the_middle_ends_the_processes(images, start_pool):
    with start_pool(FakeExtractorConfig(), ["cpu", "cpu"]) as pool:
        next(iter(pool(images)))
        processes = [worker.process for worker in pool._workers]
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("format", ["tsv", "flat-fp16", "npz", "hdf5"])
def test_shards_have_a_format_that_can_be_merged(images, tmp_path, format):
    shards = ShardFolder(tmp_path / "out.shards", format, {})
    with start_device_pool(FakeExtractorConfig(choice=RegionChoice(12, 12)), ["cpu", "cpu"], shards) as pool:
        assert sum(isinstance(event, Written) for event in pool(images[:20])) == 20
    found = [open_features(shard / "features") for shard in shards.shards()]
    assert {store.format for store in found} == {"flat" if format == "hdf5" else format}
    assert sorted(image_id for store in found for image_id in store) == list(range(20))


def test_an_image_that_the_format_cannot_hold_fails(images, tmp_path):
    shards = ShardFolder(tmp_path / "out.shards", "tsv", {})
    bad = images[0]._replace(image_id="tab\tid")
    with start_device_pool(FakeExtractorConfig(), ["cpu"], shards) as pool:
        events = list(pool([bad, images[1]]))
    (failed,) = [event for event in events if isinstance(event, Outcome)]
    assert failed.image == bad
    assert "has a tab or line break" in failed.reason


def test_a_process_starts_a_new_shard_after_some_time(images, shards, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SECONDS", 0)
    events = run_in_this_process(shards, images[:3])
    # Each shard is told before its last image, so that none comes after the last image.
    assert [type(event) for event in events] == [Shard, Written] * 3 + [type(None)]
    assert len(shards.shards()) == 3
    assert_all_once(events[:-1], images[:3], shards)


@pytest.mark.parametrize("method", ["append", "close"])
def test_a_full_disk_ends_the_run_with_one_line(images, shards, monkeypatch, method):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FlatWriter, method, full)
    answers = run_in_this_process(shards, images[:1])
    error = answers[{"append": 0, "close": -1}[method]]
    assert isinstance(error, InputError)
    assert str(error).startswith(str(shards.path))
    assert ": cannot be written: No space left on device; " in str(error)
    assert str(error).endswith(" and run the same command again to continue")


@pytest.mark.parametrize("answer", [InputError("no room"), EOFError()])
def test_a_process_that_cannot_complete_its_last_shard(answer, caplog):
    class Connection:
        def send(self, *_):
            pass

        def recv(self):
            if isinstance(answer, InputError):
                return answer
            raise answer

    worker = object.__new__(parallel._Worker)
    worker.connection, worker.device = Connection(), "cpu"
    if isinstance(answer, InputError):
        with pytest.raises(InputError, match="no room"):
            worker.close_shard()
    else:
        assert worker.close_shard() is None
        assert "the process on cpu died after its last image" in caplog.text


def test_a_process_that_cannot_be_started_is_one_line(shards, monkeypatch):
    def killed(*_):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr("multiprocessing.forkserver.connect_to_new_process", killed)
    with (
        pytest.raises(
            InputError, match=r"^cannot start a process on cpu \(unexpected EOF\); run the same command again"
        ),
        start_device_pool(FakeExtractorConfig(), ["cpu"], shards),
    ):
        pytest.fail("it is not ready")


def run_in_this_process(shards, images, device="cpu", config=None):
    """Returns what the process of a device sends for images, after it has loaded the detector."""
    ours, its = multiprocessing.Pipe()
    arguments = (its, config or FakeExtractorConfig(), device, 1, shards, False)
    worker = threading.Thread(target=run_worker, args=arguments, daemon=True)
    worker.start()
    assert isinstance(ours.recv(), int)
    ours.send([*images, None])
    answers = []
    while sum(isinstance(answer, (Outcome, Written, InputError)) for answer in answers) < len(images):
        answers.append(ours.recv())
    ours.send(CLOSE_SHARD)
    answers.append(ours.recv())
    ours.close()
    worker.join(300)
    return answers


def test_each_process_uses_its_own_gpu(images, shards, monkeypatch):
    chosen = []

    class GpuExtractorConfig(FakeExtractorConfig):
        def load_detector(self, device=None):
            # It is chosen before anything is loaded.
            assert chosen == [device] == ["cuda:1"]
            return super().load_detector(device)

    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    run_in_this_process(shards, images[:1], "cuda:1", GpuExtractorConfig())
    assert chosen == ["cuda:1"]


def test_devices(monkeypatch, caplog):
    with caplog.at_level("INFO"):
        assert devices_of("cpu", 3) == ["cpu"] * 3
    assert "--num-gpus 3: the device is cpu, so that 3 processes share its cores" in caplog.text
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_of("cuda", 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(InputError, match="--num-gpus 3: 2 GPUs found"):
        devices_of("cuda", 3)
    with pytest.raises(InputError, match="must be 1 or more"):
        devices_of("cuda", 0)


def test_a_config_can_be_sent_to_another_process():
    config = ExtractorConfig("a.yaml", ("MODEL.DEVICE", "cpu"), "random", RegionChoice(grid=True))
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
