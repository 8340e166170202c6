import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import bua.demo
from bua.data.catalog import get_dataset
from bua.features import open_features

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("data", "training", "evaluation", "extraction", "page")


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Runs the demo at the smallest size; always on the same data set and output."""
    main, folder = load_tool("demo").main, tmp_path_factory.mktemp("demo")
    output = folder / "output"

    def run(*overrides):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
            return main(
                [
                    *("--output", str(output), "--config-file", str(ROOT / "configs" / "shapes.yaml"), "--quick"),
                    *("--num-train", "8", "--num-val", "2", "--num-test", "4"),
                    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2"),
                    *("DATALOADER.NUM_WORKERS", "0", *overrides),
                ]
            )

    run.output, run.datasets = output, folder / "datasets"
    return run


def metrics_of(demo):
    return json.loads((demo.output / "metrics.json").read_text())


def test_the_demo_ends_in_a_page_with_figures_and_features(demo, capsys):
    assert demo() == 0
    out = capsys.readouterr().out
    assert [f"[{n}/5]" in out for n in range(1, 6)] == [True] * 5
    assert f"open {(demo.output / 'index.html').resolve()}" in out

    metrics = metrics_of(demo)
    for name in ("objects/mAP50", "objects/weighted_mAP50", "attributes/mAP50", "attributes/weighted_mAP50"):
        assert 0 <= metrics[name] <= 1
    assert [name for name in metrics if name.startswith("seconds/")] == [f"seconds/{stage}" for stage in STAGES]
    assert all(metrics[f"seconds/{stage}"] > 0 for stage in STAGES)

    page = (demo.output / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 * 4
    assert f"{100 * metrics['attributes/mAP50']:.1f}" in page
    assert "detector/model_final.pth" in page

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DETECTRON2_DATASETS", str(demo.datasets))
        test = get_dataset("shapes_test")
    features = open_features(demo.output / "features.tsv")
    assert set(features) == set(test.image_ids.tolist())
    assert all(np.isfinite(regions.features).all() and len(regions) for regions in features.values())


def test_a_finished_demo_runs_again_without_training_again(demo, capsys):
    demo()
    weights = demo.output / "detector" / "model_final.pth"
    before, figures = weights.stat().st_mtime_ns, metrics_of(demo)
    assert demo() == 0
    out = capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    assert "after 4 iterations" in out
    assert "0 pictures in" in out
    names = [name for name in figures if not name.startswith("seconds/")]
    assert [metrics_of(demo)[name] for name in names] == [figures[name] for name in names]


def test_a_stopped_demo_goes_on(demo, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    demo()
    before = metrics_of(demo)
    with monkeypatch.context() as stopped:
        stopped.setattr(bua.demo, "extract", stop)
        assert demo() == 130
    assert "the same command goes on from here" in capsys.readouterr().out
    assert metrics_of(demo)["seconds/training"] > before["seconds/training"]
    assert demo() == 0
    assert metrics_of(demo)["objects/mAP50"] == before["objects/mAP50"]


def test_two_configurations_are_not_mixed(demo, capsys):
    demo()
    page = (demo.output / "index.html").read_bytes()
    assert demo("SOLVER.BASE_LR", "0.25") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: .*config.yaml: .*'BASE_LR: .*', now it is 'BASE_LR: 0.25'; give another --output", error)
    assert (demo.output / "index.html").read_bytes() == page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "no.yaml"], "no.yaml: no such config file"),
        (["SOLVER.MAX_ITERS", "4"], "did you mean SOLVER.MAX_ITER?"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, message):
    output = tmp_path / "output"
    config = [] if "--config-file" in args else ["--config-file", str(ROOT / "configs" / "shapes.yaml")]
    assert load_tool("demo").main(["--output", str(output), *config, *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_figures_of_another_kind_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iteration": 2}\n')
    config = ["--config-file", str(ROOT / "configs" / "shapes.yaml")]
    assert load_tool("demo").main(["--output", str(tmp_path), *config]) == 2
    assert "metrics.json: not the metrics of a demo" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text().count("iteration") == 2
