import json
import os

import pytest

from bua.engine.log import TrainingLog
from bua.errors import InputError


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def fill(log, first, last):
    for iteration in range(first, last + 1):
        log.step(iteration, {"loss_a": iteration, "loss_b": 1.0}, lr=0.1, items=4, data_seconds=0.5)


def test_means_over_a_period(tmp_path, capsys):
    log = TrainingLog(tmp_path, max_iter=5, period=2, fractions=True)
    fill(log, 1, 5)
    log.metrics(5, {"objects/mAP50": 0.25})
    *means, evaluation = lines(tmp_path)
    assert [line["iteration"] for line in means] == [2, 4, 5]
    assert [line["loss_a"] for line in means] == [1.5, 3.5, 5.0]
    assert [line["total_loss"] for line in means] == [2.5, 4.5, 6.0]
    assert [line["data_seconds"] for line in means] == [0.5] * 3
    assert all(line["images_per_second"] > 0 for line in means)
    assert evaluation == {"iteration": 5, "objects/mAP50": 0.25}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[3:] == ["evaluation after 5 iterations:", f"{'objects/mAP50':40}  25.00 %"]
    assert printed[0].startswith("2/5  loss 2.500  a 1.500  b 1.000  lr 0.1  ")
    assert "left 0:00:00" in printed[0]


def test_a_single_loss_is_printed_once(tmp_path, capsys):
    log = TrainingLog(tmp_path, max_iter=2, period=2)
    for iteration in (1, 2):
        log.step(iteration, {"loss_words": iteration}, lr=0.1, items=4, data_seconds=0.5)
    (line,) = lines(tmp_path)
    assert line["loss_words"] == line["total_loss"] == 1.5
    assert capsys.readouterr().out.startswith("2/2  loss 1.500  lr 0.1  ")


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
    log = TrainingLog(tmp_path, max_iter=9, period=3)
    fill(log, 1, 4)
    state = log.state_dict()
    fill(log, 5, 8)
    log.metrics(6, {"accuracy": 0.5})
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 9, "tot\n' + "[" * 100_000)  # nested too deep for Python's parser

    again = TrainingLog(tmp_path, max_iter=9, start=4, period=3)
    again.load_state_dict(state)
    assert [line["iteration"] for line in lines(tmp_path)] == [3]
    fill(again, 5, 9)
    assert [line["loss_a"] for line in lines(tmp_path)] == pytest.approx([2, 5, 8])


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"iteration": "a"}',
        b'{"iteration": null}',
        b'{"iteration": [1]}',
        b"[1]",
        b'{"iteration": 2, "\xff": 1}',
        b"\0",
    ],
)
def test_a_damaged_line_is_dropped_and_all_others_are_kept(tmp_path, damaged):
    kept = [b'{"iteration": 1, "a": 0.10}', b'{"iteration": 2, "accuracy": 0.5}', b'{"iteration": 1, "a": 0.10}']
    content = [kept[0], damaged, *kept[1:], b'{"iteration": 5, "a": 1}']
    (tmp_path / "metrics.json").write_bytes(b"\n".join(content))
    log = TrainingLog(tmp_path, max_iter=9, start=4)
    assert (tmp_path / "metrics.json").read_bytes().splitlines() == kept
    with open(tmp_path / "metrics.json", "ab") as file:
        file.write(damaged + b"\n")
    assert log.has_metrics(2)
    assert not log.has_metrics(5)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(InputError, match=r"metrics\.json: cannot be read: it is a named pipe .*; move it away"):
        TrainingLog(tmp_path, max_iter=9)


def test_scores_of_an_epoch_weigh_its_items_alike_and_are_kept_over_a_resumption(tmp_path, capsys):
    def add(log, iterations):
        for iteration in iterations:
            log.step(
                iteration, {"loss_a": 1.0}, 0.1, items=iteration, data_seconds=0.0, scores={"train_score": iteration}
            )

    log = TrainingLog(tmp_path, max_iter=7, period=10, epoch=3)
    add(log, range(1, 6))
    assert not log.has_metrics(3)
    again = TrainingLog(tmp_path, max_iter=7, start=5, period=10, epoch=3)
    again.load_state_dict(log.state_dict())
    add(again, [6])
    expected = [
        {"iteration": 3, "epoch": 1, "train_score": 14 / 6},
        {"iteration": 6, "epoch": 2, "train_score": 77 / 15},
    ]
    assert lines(tmp_path) == expected
    assert capsys.readouterr().out.splitlines()[2:] == ["epoch 2, in training:", f"{'train_score':40}   5.13 %"]

    # A checkpoint of an earlier version has no scores.
    state = {key: value for key, value in log.state_dict().items() if "score" not in key}
    again = TrainingLog(tmp_path, max_iter=7, start=5, period=10, epoch=3)
    again.load_state_dict(state)
    add(again, [6])
    assert lines(tmp_path) == [expected[0], {"iteration": 6, "epoch": 2, "train_score": 6}]


def test_has_metrics_of_the_evaluations_that_were_done(tmp_path):
    log = TrainingLog(tmp_path, max_iter=4, period=2)
    assert not log.has_metrics(2)
    fill(log, 1, 2)
    assert not log.has_metrics(2)
    log.metrics(2, {"accuracy": 0.5})
    assert log.has_metrics(2)
    assert not log.has_metrics(4)
