import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from script_loading import load_script

import bua.demo.run
from bua.demo.packed import pack_models
from bua.demo.stages import STAGES
from bua.detection.catalog import get_dataset
from bua.errors import InputError
from bua.extraction.extractor_config import fingerprint
from bua.features import open_features
from bua.vqa.inference import load_vqa
from bua.weights.zoo import PACKAGED

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("vqa/updown", "vqa/blind", "vqa/perfect", "captioning/updown", "captioning/blind", "captioning/perfect")
MODELS += ("grounding/ban",)


def load_tool(name):
    return load_script(f"tools/{name}.py")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Returns a function that runs the demo at the smallest size, always with the same data set and output folder.

    The demo has run once when a test starts.
    """
    main, folder = load_tool("demo").main, tmp_path_factory.mktemp("demo")
    output = folder / "output"

    def run(*overrides, cores=1):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("os.cpu_count", lambda: cores)
            monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
            return main(
                [
                    *("--output", str(output), "--config-file", str(ROOT / "configs" / "shapes.yaml"), "--train"),
                    "--quick",
                    *("--task-configs", str(ROOT / "configs")),
                    *("--num-train", "8", "--num-val", "2", "--num-test", "4"),
                    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2"),
                    *("DATALOADER.NUM_WORKERS", "0", *overrides),
                ]
            )

    run.output, run.datasets = output, folder / "datasets"
    assert run() == 0
    return run


def metrics_of(demo):
    return json.loads((demo.output / "metrics.json").read_text())


def test_the_demo_writes_scores_features_and_a_page(demo):
    metrics = metrics_of(demo)
    for name in ("objects/mAP50", "objects/weighted_mAP50", "attributes/mAP50", "attributes/weighted_mAP50"):
        assert 0 <= metrics[name] <= 1
    scores = [f"vqa/{name}/accuracy" for name in ("updown", "blind", "perfect")]
    scores += [f"captioning/{name}/CIDEr-D" for name in ("updown", "blind", "perfect")]
    scores += ["grounding/ban/R@1", "grounding/ban/chance", "grounding/ban/bound"]
    assert {name for name in metrics if name.startswith(("vqa", "captioning", "grounding"))} == set(scores)
    assert all(0 <= metrics[name] <= 1 for name in scores)
    assert metrics["grounding/ban/R@1"] <= metrics["grounding/ban/bound"]
    assert [name for name in metrics if name.startswith("seconds/")] == [f"seconds/{stage}" for stage in STAGES]
    assert all(metrics[f"seconds/{stage}"] > 0 for stage in STAGES)

    page = (demo.output / "index.html").read_text(encoding="utf-8")
    # Of the four test images, the page shows those that COCO has, with what each model says about them.
    images = page.count("<article>")
    assert 1 <= images <= 4
    panels = {"found": 1, "annotated": 1, "phrases": 1, "answer": 2, "caption": 1}
    for panel, number in panels.items():
        assert page.count(f'<figure class="{panel}">') == number * images
    assert page.count("Reference caption, 1 of 5:") == images
    # A single evaluation, at the end of the training, is not drawn as a line.
    assert "mAP@0.5 during training" not in page
    for name in ("attributes/mAP50", "vqa/perfect/accuracy", "grounding/ban/bound"):
        assert f"{100 * metrics[name]:.1f}" in page
    models = [f"{model}/model_best.pth" for model in ("vqa/updown", "captioning/updown", "grounding/ban")]
    assert all(weights in page for weights in ("detector/model_final.pth", *models))


def test_features_by_the_ids_of_each_data_set(demo):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DETECTRON2_DATASETS", str(demo.datasets))
        test = get_dataset("shapes_test")
    features = {name: open_features(demo.output / "features" / name) for name in ("visual_genome", "coco", "flickr30k")}
    assert set(test.image_ids.tolist()) <= set(features["visual_genome"]) == set(range(1, 15))
    records = json.loads((demo.datasets / "shapes" / "image_data.json").read_text())
    assert set(features["coco"]) == {record["coco_id"] for record in records} - {None}
    for record in records:
        regions = features["visual_genome"][record["image_id"]]
        assert len(regions) == 24
        assert np.isfinite(regions.features).all()
        for name, key in (("coco", "coco_id"), ("flickr30k", "flickr_id")):
            if record[key] is not None:
                assert (features[name][record[key]].features == regions.features).all()
    perfect = open_features(demo.output / "features" / "perfect")
    assert set(perfect) == set(features["coco"])


def test_a_finished_demo_runs_again_without_training_again(demo, capsys):
    checkpoints = [demo.output / "detector", *(demo.output / model for model in MODELS)]
    before = [(folder / "model_final.pth").stat().st_mtime_ns for folder in checkpoints]
    figures = metrics_of(demo)
    assert demo() == 0
    out = capsys.readouterr().out
    assert [(folder / "model_final.pth").stat().st_mtime_ns for folder in checkpoints] == before
    assert [f"[{n}/6]" in out for n in range(1, 7)] == [True] * 6
    assert f"open {(demo.output / 'index.html').resolve()}" in out
    assert "after 4 iterations" in out
    assert "0 images extracted" in out
    assert out.count("from an earlier run") == len(MODELS)
    names = [name for name in figures if not name.startswith("seconds/")]
    assert [metrics_of(demo)[name] for name in names] == [figures[name] for name in names]


def test_the_models_of_a_demo_are_packed(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(demo.datasets))
    files = pack_models(demo.output, tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    detector = torch.load(tmp_path / PACKAGED["shapes"], weights_only=True)
    assert detector["detector"]["objects"] == get_dataset("shapes_test").objects.names
    assert "optimizer" not in detector
    half = torch.finfo(torch.float16)
    for name, value in detector["model"].items():
        assert value.isfinite().all(), name
        assert value.dtype == torch.float16 or value.dtype == torch.int64 or value.abs().max() > half.max, name
    # The task models know the detector that they come with.
    answering = load_vqa(tmp_path / PACKAGED["shapes-vqa"])
    assert answering.features["weights"] == fingerprint(str(tmp_path / PACKAGED["shapes"]))


def _without_model(path):
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "model": {"weight": 5}}, path)


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("grounding/ban/model_best.pth", lambda path: path.unlink()),
        ("captioning/blind/model_best.pth", lambda path: path.write_bytes(path.read_bytes()[:-99])),
        ("vqa/updown/model_best.pth", _without_model),
        ("detector/model_final.pth", _without_model),
        ("vqa/updown/model_best.pth", lambda path: shutil.copy(path.parents[2] / "grounding/ban/model_best.pth", path)),
    ],
)
def test_of_a_demo_that_lacks_a_model_nothing_is_packed(demo, tmp_path, monkeypatch, model, change):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(demo.datasets))
    output, packed = tmp_path / "output", tmp_path / "packed"
    shutil.copytree(demo.output, output, ignore=shutil.ignore_patterns("features", "events*"))
    packed.mkdir()
    change(output / model)
    with pytest.raises(InputError, match=model):
        pack_models(output, packed)
    assert list(packed.iterdir()) == []


def test_a_stopped_demo_is_resumed(demo, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    before = metrics_of(demo)
    for task in ("vqa", "captioning"):
        shutil.rmtree(demo.output / task / "blind")
    with monkeypatch.context() as stopped:
        stopped.setattr(bua.demo.run, "extract", stop)
        assert demo() == 130
    assert "run the same command again to continue" in capsys.readouterr().out
    assert metrics_of(demo)["seconds/training"] > before["seconds/training"]
    # The scores of the earlier run are kept.
    assert metrics_of(demo)["grounding/ban/R@1"] == before["grounding/ban/R@1"]
    # The two models that are trained again are trained at the same time.
    assert demo(cores=2) == 0
    out = capsys.readouterr().out
    assert out.count("from an earlier run") == len(MODELS) - 2
    assert sorted(re.findall(r"(.*): .* on the test images", out)) == ["captioning, blind", "vqa, blind"]
    names = [name for name in before if not name.startswith("seconds/")]
    assert [metrics_of(demo)[name] for name in names] == [before[name] for name in names]


def test_two_configurations_are_not_mixed(demo, capsys):
    page = (demo.output / "index.html").read_bytes()
    assert demo("SOLVER.BASE_LR", "0.25") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: .*config.yaml: .*'BASE_LR: .*', now it is 'BASE_LR: 0.25'; give another --output", error)
    assert (demo.output / "index.html").read_bytes() == page


def test_task_models_of_two_configurations_are_not_mixed(demo, capsys, tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    file = tmp_path / "configs" / "grounding" / "shapes.yaml"
    file.write_text(re.sub("BASE_LR: .*", "BASE_LR: 0.5", file.read_text()))
    assert demo("--task-configs", str(tmp_path / "configs")) == 2
    assert "grounding/ban/config.yaml: the run was started with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task-configs", "none"], "none/vqa/shapes_updown.yaml: this config file does not exist"),
        (["--config-file", "no.yaml"], "no.yaml: this config file does not exist"),
        (["SOLVER.MAX_ITERS", "4"], "did you mean SOLVER.MAX_ITER?"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, message):
    output = tmp_path / "output"
    config = [] if "--config-file" in args else ["--config-file", str(ROOT / "configs" / "shapes.yaml")]
    assert load_tool("demo").main(["--train", "--output", str(output), *config, *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_metrics_that_are_not_a_demos_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iteration": 2}\n')
    config = ["--config-file", str(ROOT / "configs" / "shapes.yaml"), "--head-configs", str(ROOT / "configs")]
    assert load_tool("demo").main(["--train", "--output", str(tmp_path), *config]) == 2
    assert "metrics.json: not the metrics of a demo" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text().count("iteration") == 2
