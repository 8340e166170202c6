import json
import os
import sys
import time

import pytest
import torch
from failing_processes import assert_that_all_processes_end

from bua.engine import connect, launch
from bua.engine.launch import check_processes, share_cores
from bua.errors import InputError


def write_environment(folder):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = {name: os.environ[name] for name in names}
    path = folder / f"{values['RANK']}.txt"
    path.with_suffix(".tmp").write_text(json.dumps({**values, "threads": torch.get_num_threads()}))
    path.with_suffix(".tmp").rename(path)
    # The error of the first process to fail ends the other one, which must have written its file by then.
    while len(list(folder.glob("*.txt"))) < 2:
        time.sleep(0.02)
    raise InputError("a message for the user")


def test_a_single_process_is_the_current_one():
    seen = []
    launch(seen.append, (os.getpid(),))
    assert seen == [os.getpid()]


def test_processes_know_their_rank_and_share_the_cores_and_errors_are_raised_in_the_launcher(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(InputError, match=r"^a message for the user$"):
        launch(
            write_environment,
            (tmp_path,),
            num_processes=2,
            num_machines=2,
            machine_rank=1,
            address="tcp://127.0.0.1:23456",
        )
    for number in range(2):
        assert json.loads((tmp_path / f"{2 + number}.txt").read_text()) == {
            "RANK": str(2 + number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": "4",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "23456",
            "threads": max(1, os.cpu_count() // 2),
        }
    assert "RANK" not in os.environ


@pytest.mark.parametrize(("variable", "wanted"), [(None, [max(1, os.cpu_count() // 2)]), ("7", [])])
def test_the_users_number_of_threads_is_kept(monkeypatch, variable, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # what is set below is undone at the end
    if not variable:
        monkeypatch.delenv("OMP_NUM_THREADS")
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    share_cores(2)
    assert numbers == wanted
    assert os.environ["OMP_NUM_THREADS"] == (variable or str(wanted[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 0}, "both must be 1 or more"),
        ({"num_machines": 2}, "--dist-url auto"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank 2"),
        ({"num_machines": 2, "address": "localhost"}, "tcp://host:port"),
        ({"num_machines": 2, "address": "tcp://localhost"}, "tcp://host:port"),
    ],
)
def test_the_error_names_the_wrong_option(options, message):
    with pytest.raises(InputError, match=message):
        launch(print, **options)


def test_connect_in_a_single_process():
    accelerator = connect("cpu")
    assert (accelerator.process_index, accelerator.num_processes, accelerator.is_main_process) == (0, 1, True)


def test_connect_needs_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 GPUs are needed, but 1 found.*--num-gpus"):
        connect("cuda")


@pytest.mark.parametrize(
    ("device", "rank", "wanted"), [("cuda", None, 0), ("cuda:1", None, 1), ("cuda", "1", 1), ("cuda:1", "0", 1)]
)
def test_a_process_selects_its_gpu_by_number(monkeypatch, device, rank, wanted):
    """torch.cuda.set_device refuses a device without a number, such as the default "cuda"."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(sys.modules[connect.__module__], "Accelerator", lambda **options: None)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    connect(device)
    assert chosen == [wanted]


def test_several_processes_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"'cuda:0', which is one GPU for 2 processes; use cuda"):
        connect("cuda:0")


@pytest.mark.parametrize("place", ["loading", "training", "evaluating"])
def test_an_error_in_one_process_ends_the_others_that_wait_for_it(place, tmp_path, capfd):
    assert_that_all_processes_end("torch", place, tmp_path, capfd)


def test_more_processes_than_the_machine_has_room_for(monkeypatch, capsys):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_processes("cpu", 2)
    assert capsys.readouterr().err == ""
    check_processes("cpu", 8)
    assert "warning: --num-gpus 8 starts 8 processes on the 2 cores" in capsys.readouterr().err
    with pytest.raises(InputError, match="--num-gpus 1000: too many processes for the 2 cores"):
        check_processes("cpu", 1000)
    with pytest.raises(InputError, match="8 GPUs are needed, but 1 found"):
        check_processes("cuda", 8)
    with pytest.raises(InputError, match=r"MODEL.DEVICE is 'gpu', which is not a device"):
        check_processes("gpu", 1)
