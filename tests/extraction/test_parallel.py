import os
import pickle
import signal
import threading
from pathlib import Path

import pytest
from fake_detector import FakeDetector, FakeExtractorConfig, assert_same_regions, make_images

from bua.errors import InputError
from bua.extraction import Extractor, ExtractorConfig, RegionChoice
from bua.extraction.parallel import MAX_DEATHS, devices_of, start_device_pool


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 130)


def assert_all_once(outcomes, images, failed=()):
    assert sorted(outcome.image.image_id for outcome in outcomes) == [image.image_id for image in images]
    plain = {outcome.image: outcome.regions for outcome in Extractor(FakeDetector(), RegionChoice())(images)}
    for image, regions, reason in outcomes:
        if image.image_id in failed:
            assert regions is None
            assert "two processes died while they processed it, the second with exit code -9" in reason
        else:
            assert_same_regions(regions, plain[image])


def test_two_processes_do_what_one_does(images):
    with start_device_pool(FakeExtractorConfig(batch_size=4), ["cpu", "cpu"]) as pool:
        outcomes = list(pool(images))
        assert_all_once(outcomes, images)
        # It can be called again, and with fewer images than processes.
        assert_all_once(list(pool(images[:1])), images[:1])
        assert list(pool([])) == []
        processes = [worker.process for worker in pool._workers]
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_process_that_is_killed_is_replaced_and_its_images_are_done_by_others(images, caplog, tmp_path):
    some = images[:60]
    # An image that comes through a pipe keeps its process busy until it is killed.
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    content = Path(some[3].path).read_bytes()
    stuck = some[3]._replace(path=str(pipe))
    with start_device_pool(FakeExtractorConfig(batch_size=2, num_workers=1), ["cpu", "cpu"]) as pool:
        outcomes, killed = [], []
        for outcome in pool([*some[:3], stuck, *some[4:]]):
            outcomes.append(outcome)
            if not killed and len(outcomes) > 10:
                killed = [worker.process for worker in pool._workers if stuck in worker.images]
                os.kill(killed[0].pid, signal.SIGKILL)
                killed[0].join()
                threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True).start()
        assert len(pool._workers) == 2
        assert killed[0] not in [worker.process for worker in pool._workers]
    assert_all_once([o._replace(image=some[o.image.image_id]) for o in outcomes], some)
    assert "the process on cpu died (exit code -9); other processes continue with its " in caplog.text


def test_images_that_kill_are_marked_as_failed_after_two_tries_each(images, caplog, tmp_path):
    deadly, loads = (5, 6, 100), tmp_path / "loads"
    with start_device_pool(FakeExtractorConfig(batch_size=2, deadly=deadly, loads=str(loads)), ["cpu", "cpu"]) as pool:
        outcomes = list(pool(images))
        assert len(pool._workers) == 2
    assert_all_once(outcomes, images, failed=deadly)
    # Two at the start, and one after every death. 5 and 6 may kill the same process.
    deaths = caplog.text.count("died (exit code -9)")
    assert len(deadly) + 2 <= deaths <= 2 * len(deadly)
    assert len(loads.read_text().splitlines()) <= 2 + deaths


def test_when_the_processes_on_all_devices_die_the_run_ends_with_one_line(images, caplog):
    everything = tuple(range(len(images)))
    with (
        start_device_pool(FakeExtractorConfig(deadly=everything), ["cpu"]) as pool,
        pytest.raises(InputError, match=r"the processes on all devices died; (\d+) images are left") as error,
    ):
        list(pool(images))
    left = int(str(error.value).split(";")[1].split()[0])
    assert "\n" not in str(error.value)
    assert left + MAX_DEATHS - 1 == len(images)
    assert f"{MAX_DEATHS} processes died on cpu; 0 devices are left" in caplog.text


def test_devices_on_which_no_new_process_starts(images, caplog, tmp_path):
    # Two detectors can be loaded; the next would be for processes that died, and kill theirs.
    config = FakeExtractorConfig(deadly=(20,), loads=str(tmp_path / "loads"), most_loads=2)
    outcomes = []
    with start_device_pool(config, ["cpu", "cpu"]) as pool:
        with pytest.raises(InputError, match="the processes on all devices died"):
            outcomes.extend(pool(images))
        assert pool._workers == []
    assert "died while it loaded the detector (exit code -9); 1 devices are left" in caplog.text
    assert [outcome.image.image_id for outcome in outcomes if outcome.regions is None] == [20]


class UnfitExtractorConfig(FakeExtractorConfig):
    def load_detector(self, device=None):
        raise InputError("weights: do not fit")


def test_a_wrong_config_is_reported_before_anything_is_done(tmp_path):
    with (
        pytest.raises(InputError, match=r"^weights: do not fit$"),
        start_device_pool(UnfitExtractorConfig(), ["cpu", "cpu"]),
    ):
        pytest.fail("it is not ready")
    config = FakeExtractorConfig(loads=str(tmp_path / "loads"), most_loads=0)
    with (
        pytest.raises(InputError, match=r"died while it loaded the detector \(exit code -9\)"),
        start_device_pool(config, ["cpu"]),
    ):
        pytest.fail("it is not ready")


def test_stopping_in_the_middle_ends_the_processes(images):
    with start_device_pool(FakeExtractorConfig(), ["cpu", "cpu"]) as pool:
        next(iter(pool(images)))
        processes = [worker.process for worker in pool._workers]
    assert not any(process.is_alive() for process in processes)


def test_devices(monkeypatch):
    assert devices_of("cpu", 3) == ["cpu"] * 3
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
