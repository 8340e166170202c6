import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import interrupt, interrupt_launcher, losses_and_score, overflow, train_toy

from bua.checkpoint import read_checkpoint
from bua.engine import NonFiniteLoss, last_checkpoint, launch
from bua.engine.resume import checkpoint_to_resume, read_to_resume
from bua.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED = ("images_per_second", "data_seconds")


def metrics_lines(folder) -> list[dict]:
    """Returns the lines of the log without the fields that depend on the time."""
    lines = map(json.loads, (Path(folder) / "metrics.json").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Uses one thread, as the script does: with another number of threads, sums differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train_toy(folder)


def assert_same_run(folder, uninterrupted_run):
    reference, trainer = uninterrupted_run
    assert metrics_lines(folder) == metrics_lines(reference)
    expected = trainer.model.state_dict()
    for name, value in read_checkpoint(Path(folder) / "model_final.pth")["model"].items():
        assert torch.equal(value, expected[name])


def test_writes_its_log_and_checkpoints(uninterrupted_run):
    folder, _ = uninterrupted_run
    lines = [line for line in metrics_lines(folder) if "epoch" not in line]
    assert [line["iteration"] for line in lines] == [3, 6, 9, 10]
    assert all(line["total_loss"] == pytest.approx(line["loss_a"] + line["loss_b"]) for line in lines)
    names = {path.name for path in folder.glob("*.pth")}
    assert names == {"model_0000003.pth", "model_0000007.pth", "model_final.pth"}
    assert last_checkpoint(folder).name == "model_final.pth"
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.glob("*.tmp"))


def test_scores_of_training_are_means_over_an_epoch(tmp_path):
    seen = []

    def losses(model, batch):
        seen.extend(index for index, _ in batch)
        return losses_and_score(model, batch)

    train_toy(tmp_path, losses=losses, accumulate=2, batch_size=2, max_iter=10)
    scores = [line for line in metrics_lines(tmp_path) if "epoch" in line]
    # Four iterations of two batches of two items each; the last two iterations do not complete an epoch.
    expected = [sum(seen[start : start + 16]) / 16 for start in (0, 16)]
    assert scores == [
        {"iteration": 4 * epoch, "epoch": epoch, "train_score": pytest.approx(score)}
        for epoch, score in enumerate(expected, start=1)
    ]


def test_killed_and_resumed_run_gives_the_same_losses(uninterrupted_run, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("toy_training.py"), tmp_path]
    killed = subprocess.run(command, env=environment, timeout=1200)
    assert killed.returncode == -signal.SIGKILL
    assert metrics_lines(tmp_path)[-1]["iteration"] == 6
    assert last_checkpoint(tmp_path).name == "model_0000003.pth"
    train_toy(tmp_path, resume=True, workers=1)
    assert_same_run(tmp_path, uninterrupted_run)


def test_interrupted_after_every_iteration_gives_the_same_losses(uninterrupted_run, tmp_path):
    for done in range(1, 10):
        with pytest.raises(KeyboardInterrupt):
            train_toy(tmp_path, resume=True, at_iteration={1: interrupt})
        assert last_checkpoint(tmp_path).name == f"model_{done - 1:07d}.pth"
    train_toy(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted_run)


def test_second_interrupt_does_not_wait(tmp_path):
    def twice():
        interrupt()
        return interrupt()

    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, at_iteration={6: twice})
    assert last_checkpoint(tmp_path).name == "model_0000003.pth"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def train_and_interrupt(folder):
    torch.set_num_threads(1)
    train_toy(folder, noisy=False, at_iteration={5: interrupt_launcher})


def test_data_parallel_equals_one_process(tmp_path):
    train_toy(tmp_path / "one", noisy=False)
    with pytest.raises(KeyboardInterrupt):
        launch(train_and_interrupt, (tmp_path / "two",), num_processes=2)
    assert last_checkpoint(tmp_path / "two").name in ("model_0000004.pth", "model_0000005.pth")
    train_toy(tmp_path / "two", noisy=False, resume=True)
    one, two = metrics_lines(tmp_path / "one"), metrics_lines(tmp_path / "two")
    assert len(one) == len(two)
    for line, expected in zip(two, one):
        assert line == pytest.approx(expected, rel=1e-5)


def test_evaluation_does_not_change_the_losses(uninterrupted_run, tmp_path):
    def evaluate():
        return {"accuracy": torch.rand(()).item()}

    trainer = train_toy(tmp_path, evaluate=evaluate, eval_period=4)
    lines = metrics_lines(tmp_path)
    assert [line["iteration"] for line in lines if "accuracy" in line] == [4, 8, 10]
    assert [line for line in lines if "accuracy" not in line] == metrics_lines(uninterrupted_run[0])
    assert trainer.metrics == {"accuracy": lines[-1]["accuracy"]}


def test_interrupted_evaluation_is_done_on_resume(uninterrupted_run, tmp_path):
    calls = []

    def evaluate():
        calls.append(len(calls))
        if len(calls) == 1:
            interrupt()
        return {"accuracy": 0.5}

    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, evaluate=evaluate, eval_period=6)
    assert last_checkpoint(tmp_path).name == "model_0000005.pth"
    train_toy(tmp_path, evaluate=evaluate, eval_period=6, resume=True)
    lines = metrics_lines(tmp_path)
    assert [line["iteration"] for line in lines if "accuracy" in line] == [6, 10]
    assert [line for line in lines if "accuracy" not in line] == metrics_lines(uninterrupted_run[0])

    again = train_toy(tmp_path, evaluate=evaluate, eval_period=6, resume=True)
    assert len(calls) == 3
    assert again.metrics == {}


def test_non_finite_loss_names_the_batch_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"^iteration 6: loss_a not finite in the batch of (\d, ){3}\d;") as error:
        train_toy(tmp_path, at_iteration={6: overflow})
    assert "model_0000003.pth" in str(error.value)
    assert "\n" not in str(error.value)
    weights = read_checkpoint(last_checkpoint(tmp_path))["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_does_not_overwrite_a_run(tmp_path):
    train_toy(tmp_path, max_iter=2)
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="already contains a run"):
        train_toy(tmp_path, max_iter=2)
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_a_folder_that_is_removed_during_the_run_is_one_line(tmp_path):
    def remove():
        shutil.rmtree(tmp_path / "run")
        return {"accuracy": 0.5}

    with pytest.raises(InputError, match=r"metrics\.json: its folder does not exist, or was removed meanwhile"):
        train_toy(tmp_path / "run", max_iter=4, evaluate=remove, eval_period=2)


def test_resuming_without_a_checkpoint_says_that_it_starts_from_the_beginning(tmp_path, capsys):
    train_toy(tmp_path / "run", max_iter=2, resume=True)
    assert f"{tmp_path / 'run'}: has no checkpoint; the run starts from the beginning" in capsys.readouterr().out


def test_a_run_whose_folder_another_one_has_taken_saves_nothing_there(tmp_path):
    (tmp_path / "training.lock").write_text("process 1 on another machine")
    with pytest.raises(InputError, match="process 1 on another machine is writing to it"):
        train_toy(tmp_path, max_iter=2)
    assert not list(tmp_path.glob("*.pth"))


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run with checkpoints after 4 and 6 iterations."""
    folder = tmp_path_factory.mktemp("stopped")
    train_toy(folder, max_iter=6)
    (folder / "model_final.pth").rename(folder / "model_0000005.pth")
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    return folder


@pytest.mark.parametrize("pointer", [None, "", "\0", "model_0000009.pth", "../model_0000003.pth", b"\xff"])
def test_newest_checkpoint_is_found_without_the_file_that_names_it(stopped_run, tmp_path, pointer):
    shutil.copytree(stopped_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last_checkpoint").unlink()
    if pointer is not None:
        (tmp_path / "last_checkpoint").write_bytes(pointer if isinstance(pointer, bytes) else pointer.encode())
    (tmp_path / "model_0000007.pth").mkdir()
    (tmp_path / "model_0000008.pth").symlink_to("model_0000008.pth")
    assert last_checkpoint(tmp_path) == tmp_path / "model_0000005.pth"
    # The final checkpoint of a run that was continued with more iterations is older than the others.
    shutil.copy(tmp_path / "model_0000003.pth", tmp_path / "model_final.pth")
    assert last_checkpoint(tmp_path) == tmp_path / "model_0000005.pth"
    (tmp_path / "model_final.pth").write_bytes(b"")
    assert last_checkpoint(tmp_path) == tmp_path / "model_final.pth"


def test_without_the_pointer_a_run_neither_starts_anew_nor_loses_its_checkpoints(stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last_checkpoint").unlink()
    with pytest.raises(InputError, match=r"already contains a run \(model_0000005\.pth\)"):
        train_toy(tmp_path)
    assert checkpoint_to_resume(tmp_path, True) == tmp_path / "model_0000005.pth"
    for path in tmp_path.glob("model_0*"):
        path.unlink()
    (tmp_path / "model_best.pth").write_bytes(b"")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"contains model_best\.pth, but no checkpoint .*; change OUTPUT_DIR"):
            checkpoint_to_resume(tmp_path, resume)


def test_a_damaged_newest_checkpoint_is_named_with_the_one_before_it(stopped_run, uninterrupted_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path, dirs_exist_ok=True)
    newest, before = tmp_path / "model_0000005.pth", tmp_path / "model_0000003.pth"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model_0000005\.pth: .*truncated.*--resume-from .*model_0000003\.pth$"):
        train_toy(tmp_path, resume=True)
    with pytest.raises(InputError, match=r"contains a run of its own \(model_0000005\.pth\)"):
        train_toy(tmp_path, resume=stopped_run / "model_0000003.pth")
    train_toy(tmp_path, resume=str(before))
    assert_same_run(tmp_path, uninterrupted_run)
    before.write_bytes(b"")
    with pytest.raises(InputError, match=r"no other checkpoint to continue from, so start it again"):
        read_to_resume(before, tmp_path / "empty", 10)


def state_without(part, key):
    return lambda saved: saved[part].pop(key)


def state_with(*path, value):
    def change(saved):
        for name in path[:-1]:
            saved = saved[name]
        saved[path[-1]] = value

    return change


def adam(saved):
    saved["optimizer"]["param_groups"][0] |= {"betas": (0.9, 0.99), "amsgrad": False}
    del saved["optimizer"]["param_groups"][0]["momentum"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adam, "optimizer does not fit .*another optimizer than SGD"),
        (state_without("optimizer", "param_groups"), "optimizer does not fit"),
        (state_with("optimizer", value=3), "optimizer does not fit"),
        (state_with("optimizer", "state", 0, "momentum_buffer", value=torch.zeros(3)), "momentum_buffer has the shape"),
        (state_with("scheduler", value={}), "scheduler does not fit"),
        (state_with("scheduler", "last_epoch", value=2), "scheduler does not fit .it is at iteration 2"),
        (state_with("data", value={"seed": 1, "epoch": -1, "items": 0}), "data does not fit"),
        (state_with("data", value=[]), "data does not fit"),
        (state_with("random", value=[{"python": [3, [1], None]}]), "random does not fit"),
        (state_with("random", 0, "torch", value=torch.zeros(4)), "random does not fit"),
        (state_with("random", value=7), "random does not fit"),
        (state_with("log", value={"sums": "ab"}), "log does not fit"),
        (state_with("iteration", value="6"), "iteration is '6'"),
        (state_with("iteration", value=-1), "iteration is '-1'"),
        (state_with("iteration", value=11), "was saved after 11 iterations, but the run ends after 10"),
        (state_with("trainer", value={"hooks": 3}), None),
        (lambda saved: saved.pop("scheduler"), "contains only weights"),
        (state_with("model", value={}), "holds no weights"),
        (state_with("model", "linear.weight", value=torch.zeros(4, 3)), r"linear\.weight has the shape"),
        (state_with("model", "linear.weight", 0, value=torch.nan), r"linear\.weight has values that are NaN"),
    ],
)
def test_damage_of_a_checkpoint_is_one_line(stopped_run, tmp_path, change, message):
    saved = read_checkpoint(stopped_run / "model_0000005.pth")
    change(saved)
    path = tmp_path / "model_0000005.pth"
    torch.save(saved, path)
    if message is None:
        train_toy(tmp_path, resume=True)
        return
    with pytest.raises(InputError, match=rf"^{path}: .*{message}") as error:
        train_toy(tmp_path, resume=True)
    assert "\n" not in str(error.value)
    assert [other.name for other in tmp_path.glob("*.pth")] == [path.name]


def test_a_finished_run_can_be_continued(tmp_path):
    train_toy(tmp_path, max_iter=5)
    trainer = train_toy(tmp_path, max_iter=8, resume=True)
    assert trainer.iteration == 8
    assert metrics_lines(tmp_path)[-1]["iteration"] == 8


def test_resume_with_another_batch_size_continues_in_the_epoch(tmp_path):
    train_toy(tmp_path, max_iter=5)
    trainer = train_toy(tmp_path, max_iter=6, batch_size=2, resume=True)
    # 5 batches of 4 are an epoch (3 batches, the last filled up) and 8 items; the sixth takes 2 more.
    assert trainer.loader.state_dict() == {"seed": 1, "epoch": 2, "items": 0}


def test_refuses_a_checkpoint_of_weights_only(tmp_path):
    trainer = train_toy(tmp_path, max_iter=2)
    torch.save(trainer.model.state_dict(), tmp_path / "model_final.pth")
    with pytest.raises(InputError, match=r"model_final\.pth: contains only weights"):
        train_toy(tmp_path, max_iter=4, resume=True)


def test_continues_from_a_checkpoint_of_detectron2s_trainer(tmp_path):
    """The checkpoint has the form of Detectron2's, so that this is tested without it; tests/d2 uses a real one."""
    train_toy(tmp_path, max_iter=4)
    path = last_checkpoint(tmp_path)
    saved = read_checkpoint(path)
    theirs = {
        "iteration": 3,
        "hooks": {"LRScheduler": saved["scheduler"]},
        "optimizer": saved["optimizer"],
        "scaler": saved["scaler"],
    }
    torch.save({"model": saved["model"], "trainer": theirs, "iteration": 3}, path)
    trainer = train_toy(tmp_path, max_iter=4, resume=True)
    assert trainer.iteration == trainer.scheduler.last_epoch == 4
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert all(map(torch.equal, momentum, [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]))
    assert train_toy(tmp_path, max_iter=6, resume=True).iteration == 6


def test_bfloat16_trains_and_float16_needs_a_gpu(tmp_path):
    train_toy(tmp_path / "bf16", precision="bfloat16")
    line = metrics_lines(tmp_path / "bf16")[-1]
    assert line["total_loss"] > 0
    with pytest.raises(InputError, match="needs a GPU"):
        train_toy(tmp_path / "fp16", precision="float16")
    with pytest.raises(InputError, match="use one of"):
        train_toy(tmp_path / "int8", precision="int8")


def test_an_image_that_cannot_be_read_stops_the_run_and_a_checkpoint_is_saved(uninterrupted_run, tmp_path):
    def unreadable():
        raise InputError("a.jpg: is a truncated JPEG file; fetch it again")

    with pytest.raises(InputError, match=r"a\.jpg"):
        train_toy(tmp_path, at_iteration={7: unreadable})
    assert last_checkpoint(tmp_path).name == "model_0000005.pth"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = train_toy(tmp_path)
    state = trainer._snapshot()
    state["model"]["linear.weight"] = torch.full((2, 3), torch.nan)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")}
    with pytest.raises(NonFiniteLoss, match=r"iteration 10: 1 parameters are not finite, such as linear\.weight"):
        trainer._save(state)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")} == before


def test_accumulated_batches_make_one_step(tmp_path):
    seen = []

    def losses(model, batch):
        seen.append([index for index, _ in batch])
        return {"loss_a": model(batch)["loss_a"]}

    options = {"noisy": False, "max_iter": 2, "scores": (), "losses": losses}
    trainer = train_toy(tmp_path, batch_size=5, accumulate=2, **options)
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert (trainer.loader.epoch, trainer.loader.position) == (2, 0)
    # Each step was on all ten items, as with one batch of ten.
    whole = train_toy(tmp_path / "whole", batch_size=10, **options)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name])


def test_saves_the_best_model_with_its_metrics_and_extra_content(tmp_path):
    values = iter([0.5, 0.75, 0.25])
    train_toy(
        tmp_path,
        max_iter=9,
        evaluate=lambda: {"accuracy": next(values)},
        eval_period=3,
        best="accuracy",
        extra={"vocabulary": ["cat", "dog"]},
    )
    best = read_checkpoint(tmp_path / "model_best.pth")
    assert (best["iteration"], best["metrics"], best["vocabulary"]) == (6, {"accuracy": 0.75}, ["cat", "dog"])
    final = read_checkpoint(tmp_path / "model_final.pth")
    assert final["vocabulary"] == ["cat", "dog"]


def test_a_resumed_run_knows_its_best(tmp_path):
    train_toy(tmp_path, max_iter=3, evaluate=lambda: {"accuracy": 0.75}, eval_period=3, best="accuracy")
    train_toy(tmp_path, max_iter=4, resume=True, evaluate=lambda: {"accuracy": 0.5}, eval_period=4, best="accuracy")
    assert read_checkpoint(tmp_path / "model_best.pth")["iteration"] == 3


@pytest.mark.parametrize("extra", [{"words": ["dog", "cat"]}, {"detector": {"objects": ["a"], "config": "B: 2"}}])
def test_a_run_with_another_vocabulary_is_not_resumed(tmp_path, extra):
    before = {"words": ["cat", "dog"], "detector": {"objects": ["a", "b"], "config": "A: 1"}}
    train_toy(tmp_path, max_iter=2, extra=before)
    with pytest.raises(InputError, match=r"model_final.pth: \w+ was another list when this was saved"):
        train_toy(tmp_path, max_iter=3, resume=True, extra=before | extra)
    train_toy(tmp_path, max_iter=3, resume=True, extra=before | {"detector": {"objects": ["a", "b"], "config": "C"}})
