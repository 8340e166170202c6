"""Runs tools/train_net.py on ten images in Visual Genome's layout with a small detector."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from script_loading import load_script
from short_training import short_training_values

from bua.checkpoint import load_checkpoint
from bua.commands import main
from bua.config import load_cfg
from bua.detection.catalog import get_dataset
from bua.features import open_features
from bua.io.files import exclusive
from bua.shapes.make import make_shapes
from bua.visual_genome.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / "configs" / "shapes.yaml")
CONFIG_OF_BOXES = REPOSITORY / "configs" / "shapes_efficientdet.yaml"
TOOL = REPOSITORY / "tools" / "train_net.py"


train_net = load_script(TOOL)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    make_shapes(root / "shapes", num_train=7, num_val=3, num_test=2, processes=1)
    prepare(root / "shapes", "shapes", progress=False)
    return root


@pytest.fixture
def options(datasets, tmp_path, monkeypatch):
    """Arguments of a short training run into ``tmp_path / "run"``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    values = short_training_values(max_iter=8, checkpoint_period=3)

    def arguments(*changes, output="run"):
        merged = {**values, "OUTPUT_DIR": tmp_path / output, **dict(zip(changes[::2], changes[1::2]))}
        return ["--engine", "torch", "--config-file", CONFIG, *(str(part) for pair in merged.items() for part in pair)]

    return arguments


@pytest.mark.parametrize("engine", ["torch", None])
def test_a_detector_that_is_not_trained_is_refused_in_one_line(engine, capsys):
    options = ["--engine", engine] if engine else []
    assert train_net.main([*options, "--config-file", str(REPOSITORY / "configs" / "vinvl_x152c4.yaml")]) == 2
    assert "VinVL's detector is not trained by bua" in capsys.readouterr().err


def metrics_lines(folder) -> list[dict]:
    measured = ("images_per_second", "data_seconds")
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


def metrics_printed(output: str) -> dict[str, float]:
    """Returns the metrics in the table that an evaluation prints, in percent."""
    lines = [line.removesuffix(" %").split() for line in output.splitlines() if line.endswith(" %")]
    return {name: float(value) for name, value in lines}


def kept_detections(folder) -> dict[str, bytes]:
    """Returns the detections of the evaluations of a run by checkpoint and kind."""
    paths = (folder / "evaluation" / "shapes_test").glob("*/*.json")
    return {str(path.relative_to(folder / "evaluation" / "shapes_test")): path.read_bytes() for path in paths}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 1200
    while not path.exists():
        assert process.poll() is None or path.exists(), process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_train_kill_resume_evaluate(options, datasets, tmp_path, capsys):
    assert train_net.main(options(output="whole")) == 0
    whole = metrics_lines(tmp_path / "whole")
    assert [line["iteration"] for line in whole] == [8, 8]
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr"}
    assert losses < set(whole[0])
    assert {"objects/mAP50", "attributes/weighted_mAP50"} < set(whole[1])
    assert load_cfg(tmp_path / "whole" / "config.yaml").SOLVER.MAX_ITER == 8

    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(TOOL), *options("DATALOADER.NUM_WORKERS", 1)]
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "run" / "model_0000002.pth", killed)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert train_net.main([*options(), "--resume"]) == 0
    assert metrics_lines(tmp_path / "run") == whole
    expected = load_checkpoint(tmp_path / "whole" / "model_final.pth")
    for name, value in load_checkpoint(tmp_path / "run" / "model_final.pth").items():
        assert torch.equal(value, expected[name])

    capsys.readouterr()
    kept = kept_detections(tmp_path / "whole")
    assert sorted(kept) == ["model_final/attributes.json", "model_final/objects.json"]
    assert train_net.main([*options(output="whole"), "--eval-only"]) == 0
    table = metrics_printed(capsys.readouterr().out)
    assert list(table)[:3] == ["objects/original/mAP50", "objects/original/weighted_mAP50", "objects/mAP50"]
    assert table["objects/mAP50"] == pytest.approx(100 * whole[1]["objects/mAP50"], abs=0.01)
    assert kept_detections(tmp_path / "whole") == kept

    # Other checkpoints have folders of their own, also those of another run that have the same name.
    for weights in (tmp_path / "whole" / "model_0000002.pth", tmp_path / "run" / "model_final.pth"):
        assert train_net.main([*options("MODEL.WEIGHTS", weights, output="whole"), "--eval-only"]) == 0
    now = kept_detections(tmp_path / "whole")
    assert {name: now[name] for name in kept} == kept
    first, *others = sorted({name.partition("/")[0] for name in now})
    assert first == "model_0000002"
    assert others[0] == "model_final"
    assert others[1].startswith("model_final-")
    assert now["model_0000002/objects.json"] != kept["model_final/objects.json"]
    coco = COCO(str(datasets / "shapes" / "annotations" / "shapes_test.json"))
    assert coco.loadRes(str(tmp_path / "whole" / "evaluation" / "shapes_test" / "model_final" / "objects.json")).anns

    assert train_net.main(options(output="whole")) == 2
    assert "already contains a run" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--resume",)])
def test_a_second_training_in_the_same_folder_is_refused(options, tmp_path, capsys, arguments):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_best.pth").touch()  # of a run that has begun; that it is alive matters more
    with exclusive(folder, folder / "training.lock"):
        assert train_net.main([*options(), *arguments]) == 2
        assert sorted(path.name for path in folder.iterdir()) == ["model_best.pth", "training.lock"]
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: process {os.getpid()} on ")
    assert error.endswith("is writing to it; wait until it is done, or stop it\n")


def test_starts_from_weights_of_another_vocabulary(options, tmp_path, capsys):
    short = ("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")
    assert train_net.main(options(*short)) == 0
    weights = tmp_path / "run" / "model_final.pth"
    content = torch.load(weights)["model"]
    for name in list(content):
        if "cls_score" in name:
            content[name] = content[name][:5]
    torch.save(content, tmp_path / "other.pth")

    capsys.readouterr()
    changed = ("MODEL.WEIGHTS", tmp_path / "other.pth")
    assert train_net.main(options(*short, *changed, output="fine_tuned")) == 0
    report = "2 parameters have another shape, or belong to other anchors, than in the model: roi_heads.box_predictor"
    assert report in capsys.readouterr().out

    assert train_net.main([*options(*changed), "--eval-only"]) == 2
    error = capsys.readouterr().err
    assert "other.pth: roi_heads.box_predictor.cls_score.weight has the shape (5, " in error
    assert "set MODEL.ROI_HEADS.NUM_CLASSES to 4" in error


def test_bfloat16_and_clipping(options, tmp_path):
    changes = ("SOLVER.AMP.ENABLED", True, "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.MAX_ITER", 2)
    assert train_net.main(options(*changes, "DATASETS.TEST", "()")) == 0
    assert metrics_lines(tmp_path / "run")[-1]["total_loss"] > 0


def test_non_finite_loss_names_the_images(options, tmp_path, capsys):
    changes = ("SOLVER.BASE_LR", 1e20, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 20)
    assert train_net.main(options(*changes)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: iteration ")
    assert "not finite in the batch of" in error
    assert error.count("\n") == 1


def test_processes_share_training_and_evaluation(options, tmp_path, capsys):
    changes = ("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    assert train_net.main([*options(*changes), "--num-gpus", "2"]) == 0
    _, losses, shared = metrics_lines(tmp_path / "run")
    kept = kept_detections(tmp_path / "run")
    assert sorted(name for name in kept if "objects" in name) == [
        "model_0000000/objects.json",
        "model_final/objects.json",
    ]
    assert losses["total_loss"] > 0
    capsys.readouterr()
    assert train_net.main([*options(*changes), "--eval-only"]) == 0
    assert metrics_printed(capsys.readouterr().out) == {
        name: pytest.approx(100 * value, abs=0.01) for name, value in shared.items() if name != "iteration"
    }
    alone = kept_detections(tmp_path / "run")
    assert alone["model_0000000/objects.json"] == kept["model_0000000/objects.json"]
    for name in ("model_final/objects.json", "model_final/attributes.json"):
        by_two, by_one = (
            [(one["image_id"], one["score"]) for one in json.loads(found[name])] for found in (kept, alone)
        )
        assert [image_id for image_id, _ in by_two] == [image_id for image_id, _ in by_one]
        assert [score for _, score in by_two] == pytest.approx([score for _, score in by_one], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        (("DATASETS.TRAIN", "('shapes_trian',)"), (), "shapes_trian"),
        (("DATASETS.TRAIN", "()"), (), "DATASETS.TRAIN: empty"),
        (("DATASETS.TEST", "()"), ("--eval-only",), "DATASETS.TEST: empty"),
        ((), ("--eval-only",), "MODEL.WEIGHTS: empty, and no checkpoint in"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", 1600), (), "MODEL.ROI_HEADS.NUM_CLASSES is 1600, but the vocabulary of"),
        (("MODEL.WEIGHTS", "none.pth"), (), "none.pth: no such checkpoint file"),
        (("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"), (), "needs a GPU"),
        (("SOLVER.LR_SCHEDULER_NAME", "Other"), (), "SOLVER.LR_SCHEDULER_NAME is 'Other'"),
        (("SOLVER.IMS_PER_BATCH", 0), (), "SOLVER.IMS_PER_BATCH is 0"),
        ((), ("--num-gpus", "0"), "--num-gpus 0"),
        (("MODEL.BUA.DUMP.OUTPUT", "features"), (), "only Detectron2's engine writes features during a training"),
    ],
)
def test_bad_input_is_reported_in_one_line(options, capsys, changes, extra, message):
    assert train_net.main([*options(*changes), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_truncated_image_is_reported_in_one_line(options, datasets, capsys):
    dataset = get_dataset("shapes_train")
    path = Path(dataset.file_name(0))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    try:
        assert train_net.main(options("DATALOADER.NUM_WORKERS", 1)) == 2
    finally:
        path.write_bytes(data)
    error = capsys.readouterr().err
    assert f"error: {path}: is a truncated JPEG" in error


def test_efficientdet_from_training_to_features(datasets, tmp_path, monkeypatch, capsys):
    pytest.importorskip("effdet")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    classes = len(get_dataset("shapes_train").objects)
    values = {
        "OUTPUT_DIR": tmp_path / "run",
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.BUA.EFFICIENTDET.IMAGE_SIZE": "(48, 64)",
        "MODEL.BUA.EFFICIENTDET.MAX_LEVEL": 5,
        "MODEL.BUA.EFFICIENTDET.FPN_CHANNELS": 8,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
    }
    options = ["--config-file", str(CONFIG_OF_BOXES), *(str(part) for pair in values.items() for part in pair)]
    # The configuration says so, or a key on the command line does.
    changed = ["--config-file", CONFIG, "MODEL.META_ARCHITECTURE", "EfficientDet"]
    for wrong in (options, changed):
        assert train_net.main(["--engine", "detectron2", *wrong]) == 2
        assert "Detectron2 has no EfficientDet" in capsys.readouterr().err
    assert train_net.main(options) == 0
    trained = capsys.readouterr().out
    assert train_net.main(["--eval-only", *options]) == 0
    metrics = [line for line in trained.splitlines() if line.startswith("objects/")]
    assert metrics
    assert metrics == [line for line in capsys.readouterr().out.splitlines() if line.startswith("objects/")]
    (tmp_path / "run" / "evaluation" / "shapes_test" / "model_final" / "objects_corrected.tsv").read_text()
    arguments = ["--boxes-from", str(tmp_path / "run" / "model_final.pth"), "--features-from", "crops"]
    arguments += [
        "--crop-weights",
        "random",
        "--score-threshold",
        "0",
        "--max-boxes",
        "2",
        "--device",
        "cpu",
        "--format",
        "npz",
    ]
    assert main(["extract", *arguments, "--output", str(tmp_path / "features")]) == 0
    features = open_features(tmp_path / "features")
    assert [regions.features.shape for regions in features.values()] == [(2, 2048)] * 2
