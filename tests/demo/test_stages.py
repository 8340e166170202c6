import io
import json

import pytest

from bua.demo import stages, tasks
from bua.demo.page import scores
from bua.demo.stages import STAGES, Record, check_configuration, print_plan
from bua.demo.tasks import _ThinnedLog
from bua.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock by one that the test moves."""
    now = [0.0]
    for module in (stages, tasks):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_seconds_of_a_stopped_stage_are_kept_and_added_to(tmp_path, clock, capsys):
    record = Record(tmp_path / "metrics.json", STAGES)
    record.metrics["vqa/blind/accuracy"] = 0.4

    def stopped():
        with record.stage("training"):
            clock[0] += 30
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert "[2/6] Training the detector" in capsys.readouterr().out

    record = Record(tmp_path / "metrics.json", STAGES)
    assert record.content() == {"vqa/blind/accuracy": 0.4, "seconds/training": 30}
    with record.stage("training", resumed=True):
        clock[0] += 5
    with record.stage("data"):
        clock[0] += 2
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content == {"vqa/blind/accuracy": 0.4, "seconds/data": 2, "seconds/training": 35}
    with record.stage("training"):
        clock[0] += 1
    assert Record(tmp_path / "metrics.json", STAGES).seconds == {"data": 2, "training": 1}


@pytest.mark.parametrize("text", ["[1, 2]", '{"objects/mAP50": "many"}', '{"a": null}', "{", '{"a": 1}\n{"a": 2}'])
def test_files_that_are_not_metrics_are_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json: not the metrics of a demo"):
        Record(tmp_path / "metrics.json", STAGES)


def test_a_run_is_not_resumed_with_another_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    check_configuration(path, "A: 1\n")
    path.write_text("MODEL:\n  A: 1\n  B: 2\n")
    check_configuration(path, "MODEL:\n  A: 1\n  B: 2\n")
    check_configuration(path, "MODEL:\n  A: 1\n  B: 3\n", except_for=("B",))
    with pytest.raises(InputError, match="started with 'B: 2', now it is 'B: 3'; give another --output, or remove"):
        check_configuration(path, "MODEL:\n  A: 1\n  B: 3\n", except_for=("A",))


def test_the_plan_adds_up(capsys):
    print_plan(STAGES)
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    assert sum(float(line.split()[-1]) for line in lines) == pytest.approx(float(last.split()[-1]))
    assert float(last.split()[-1]) < 15


def test_the_file_has_all_lines_and_the_console_a_few(clock):
    file, console = io.StringIO(), io.StringIO()
    output = _ThinnedLog(file, console, "vqa, blind: ")
    for number in range(100):
        clock[0] += 1
        print(f"step {number}", file=output)
    assert file.getvalue().splitlines() == [f"step {number}" for number in range(100)]
    shown = console.getvalue().splitlines()
    assert 5 <= len(shown) <= 10
    assert shown[0].startswith("vqa, blind: step 10")


def test_the_table_has_each_task_with_its_baseline_and_its_bound():
    names = ["objects/mAP50", "attributes/mAP50"]
    names += [f"vqa/{model}/accuracy" for model in ("updown", "blind", "perfect")]
    names += [f"captioning/{model}/CIDEr-D" for model in ("updown", "blind", "perfect")]
    names += [f"grounding/ban/{metric}" for metric in ("R@1", "chance", "bound")]
    rows = scores({name: number / 100 for number, name in enumerate(names)})
    assert [(row.score, row.blind, row.bound) for row in rows] == [
        (0.0, None, None),
        (0.01, None, None),
        (0.02, 0.03, 0.04),
        (0.05, 0.06, 0.07),
        (0.08, 0.09, 0.1),
    ]


@pytest.mark.parametrize(("cider", "end"), [(0.0, 1.0), (0.94, 1.0), (1.515, 2.0)])
def test_cider_has_a_scale_of_its_own(cider, end):
    metrics = dict.fromkeys(["objects/mAP50", "attributes/mAP50"], 0.9)
    metrics |= dict.fromkeys([f"vqa/{model}/accuracy" for model in ("updown", "blind", "perfect")], 0.8)
    metrics |= dict.fromkeys([f"captioning/{model}/CIDEr-D" for model in ("updown", "blind", "perfect")], cider)
    metrics |= dict.fromkeys([f"grounding/ban/{metric}" for metric in ("R@1", "chance", "bound")], 0.9)
    rows = scores(metrics)
    assert [(row.unit, row.scale_end) for row in rows] == [*[("%", 1.0)] * 3, ("×\u00a0100", end), ("%", 1.0)]
