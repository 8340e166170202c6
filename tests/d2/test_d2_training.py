"""Runs tools/train_net.py with Detectron2 on a few images."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from failing_processes import assert_that_all_processes_end
from feature_files import REGION_FORMATS
from script_loading import load_script

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from pycocotools.coco import COCO

import bua.d2
from bua.checkpoint import load_checkpoint
from bua.d2.launch import launch
from bua.d2.trainer import Checkpointer, Trainer, train_detector
from bua.detection.catalog import vocabulary_folder
from bua.engine import NonFiniteLoss
from bua.errors import InputError
from bua.extraction import extract
from bua.features import open_features
from bua.io.files import exclusive
from bua.vocabulary import Vocabulary

CONFIG = "configs/shapes.yaml"
KINDS = ("object", "attribute")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_net.py"


train_net = load_script(TOOL)


@pytest.fixture
def run(shapes, tmp_path):
    """Returns a function that calls the tool with an engine and with changes to the short run's configuration. The
    output is in ``tmp_path / "run"``."""

    def call(engine, *flags, **changes):
        overrides = shapes(**{"OUTPUT_DIR": tmp_path / "run", **changes})
        return train_net.main(["--config-file", CONFIG, "--engine", engine, *flags, *overrides])

    return call


def evaluated(engine, run, capsys, **changes) -> dict[str, float]:
    """Returns the metrics that an evaluation of the newest checkpoint prints."""
    capsys.readouterr()
    assert run(engine, "--eval-only", **changes) == 0
    lines = [line.removesuffix(" %").split() for line in capsys.readouterr().out.splitlines() if line.endswith(" %")]
    return {name: float(value) for name, value in lines}


def last_lines(folder, number):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()[-number:]]


def test_train_resume_evaluate(run, shapes_root, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("detectron2", SOLVER__AMP__ENABLED=True, TEST__EVAL_PERIOD=2) == 0
    out = capsys.readouterr().out
    printed = [line for line in out.splitlines() if line.endswith(" %")]
    assert [line.split()[0] for line in printed[:2]] == ["objects/original/mAP50", "objects/original/weighted_mAP50"]
    assert len(printed) == 2 * 9  # after each evaluation
    *lines, metrics = last_lines(folder, 3)
    losses = next(line for line in lines if "total_loss" in line)
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr", "total_loss", "lr"} < set(losses)
    assert {"objects/mAP50", "attributes/weighted_mAP50"} < set(metrics)
    evaluations = folder / "evaluation" / "shapes_test"
    files = {"objects.json", "attributes.json", "objects_corrected.tsv", "attributes_original.tsv"}
    for checkpoint in ("model_0000001", "model_final"):
        assert files < {path.name for path in (evaluations / checkpoint).iterdir()}
    log = (folder / "log.txt").read_text()
    assert "\x1b[" not in log
    for text in ("Environment info", "IMS_PER_BATCH: 2", "AttributeRCNN(", "copypaste: Task: objects"):
        assert text in log
        assert text not in out
    assert "total_loss: " in out
    coco = COCO(str(shapes_root / "shapes" / "annotations" / "shapes_test.json"))
    assert coco.loadRes(str(evaluations / "model_final" / "objects.json")).anns
    kept = (evaluations / "model_0000001" / "objects.json").read_bytes()
    assert {"model_0000001.pth", "model_final.pth"} < {path.name for path in folder.iterdir()}

    capsys.readouterr()
    assert run("detectron2") == 2
    assert "already contains a run" in capsys.readouterr().err
    tables = [evaluated(engine, run, capsys) for engine in ("detectron2", "torch")]
    assert tables[0] == tables[1]
    assert tables[0]["attributes/mAP50"] == pytest.approx(100 * metrics["attributes/mAP50"], abs=0.01)
    assert (evaluations / "model_0000001" / "objects.json").read_bytes() == kept

    # With the original's rows of zeros, of which the drawn images have none.
    content = json.loads((shapes_root / "shapes" / "annotations" / "shapes_test.json").read_text())
    content["images"] = [image | {"zero_rows": 7} for image in content["images"]]
    (shapes_root / "shapes" / "zeros.json").write_text(json.dumps(content))
    changes = {
        "DATASETS__TEST": f"('{shapes_root / 'shapes' / 'zeros.json'}',)",
        "MODEL__BUA__EVALUATION__ZERO_ROWS": True,
    }
    with_rows = [evaluated(engine, run, capsys, **changes) for engine in ("detectron2", "torch")]
    assert with_rows[0] == with_rows[1]
    changed = {name for name, value in with_rows[0].items() if value != tables[0][name]}
    assert changed == {"attributes/original/mAP50", "attributes/original/weighted_mAP50"}


def test_a_second_training_in_the_same_folder_is_refused(run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_best.pth").touch()  # of a run that has begun; that it is alive matters more
    with exclusive(folder, folder / "training.lock"):
        assert run("detectron2") == 2
        assert sorted(path.name for path in folder.iterdir()) == ["model_best.pth", "training.lock"]
    assert f"error: {folder}: process {os.getpid()} on " in capsys.readouterr().err


def test_importing_detectron2_says_nothing_of_deprecated_functions():
    check = "import warnings; warnings.simplefilter('error', FutureWarning); import bua.d2"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_engines_continue_from_each_others_checkpoints(run, tmp_path):
    """Iterations, learning rate and the optimizer's state continue in any order of the engines."""
    turns = {"torch_last": ["torch", "detectron2", "torch"], "detectron2_last": ["detectron2", "torch", "detectron2"]}
    saved = {}
    for name, engines in turns.items():
        for number, engine in enumerate(engines, start=1):
            changes = {"OUTPUT_DIR": tmp_path / name, "DATASETS__TEST": "()", "SOLVER__MAX_ITER": 2 * number}
            assert run(engine, *(["--resume"] if number > 1 else []), **changes) == 0
        saved[name] = torch.load(tmp_path / name / "model_final.pth", weights_only=True)
    ours, theirs = saved["torch_last"], saved["detectron2_last"]["trainer"]
    assert ours["iteration"] == theirs["iteration"] + 1 == 6
    assert ours["scheduler"]["last_epoch"] == theirs["hooks"]["LRScheduler"]["last_epoch"] == 6
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for part in (ours, theirs):
        assert {int(state["step"]) for state in part["optimizer"]["state"].values()} == {6}  # AdamW's own count


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_features_dumped_by_one_process_are_the_extracted_ones(shapes, shapes_root, tmp_path, format):
    cfg = bua.d2.load_cfg(CONFIG, shapes())
    model = Trainer.build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    dumped = tmp_path / "dumped"
    folder = vocabulary_folder("shapes_test")
    about = {f"{kind}_vocabulary": Vocabulary.read(folder / f"{kind}s_vocab.txt").names for kind in KINDS}
    least = 7 if format == "hdf5" else 5  # hdf5 needs the same number of boxes in every image
    dumper = bua.d2.FeatureDumper(dumped, format, about, min_boxes=least, max_boxes=7, convention="caffe")
    dumper.reset()  # simulates a run that was stopped
    dumper.parts.joinpath("7").write_text("old")
    assert inference_on_dataset(model, Trainer.build_test_loader(cfg, "shapes_test"), dumper) == {}
    assert not dumper.parts.exists()

    extracted = tmp_path / "extracted"
    folder = shapes_root / "shapes"
    options = {"image_root": folder, "format": format, "min_boxes": least, "max_boxes": 7}
    annotations = folder / "annotations" / "shapes_test.json"
    overrides = shapes(MODEL__WEIGHTS=tmp_path / "weights.pth")
    extract(annotations, extracted, config_file=CONFIG, overrides=overrides, **options)
    # Two numbers that differ in the last bit of float32 may be rounded to different float16 numbers.
    assert_same_features(dumped, extracted, tolerance=1e-3 if format == "flat-fp16" else 1e-4)
    with pytest.raises(InputError, match="dumped: already exists"):
        dumper.reset()


def assert_same_features(path, expected_path, tolerance=1e-4):
    dumped, expected = open_features(path), open_features(expected_path)
    assert sorted(dumped) == sorted(expected)
    for image_id, regions in expected.items():
        ours = dumped[image_id]
        assert (ours.width, ours.height) == (regions.width, regions.height)
        for field in ("boxes", "features"):
            value, wanted = (torch.from_numpy(getattr(x, field)) for x in (ours, regions))
            torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance * float(wanted.max()))


def train_evaluate_and_dump(config, overrides, folder):
    cfg = bua.d2.load_cfg(config, overrides)
    train_detector(cfg)
    model = Trainer.build_model(cfg)
    model.load_state_dict(load_checkpoint(folder / "run" / "model_final.pth"))
    for format in ("tsv", "npz"):
        dumper = bua.d2.FeatureDumper(folder / f"features.{format}", format, max_boxes=12, convention="caffe")
        assert inference_on_dataset(model, Trainer.build_test_loader(cfg, "shapes_test"), dumper) == {}
    (folder / f"rank{comm.get_rank()}").touch()


def test_two_processes_train_evaluate_and_dump(shapes, shapes_root, tmp_path, capsys):
    """Two processes share three images, so one has more images than the other."""
    overrides = shapes(OUTPUT_DIR=tmp_path / "run")
    launch(train_evaluate_and_dump, (CONFIG, overrides, tmp_path), num_processes=2)
    assert (tmp_path / "rank0").exists()
    assert (tmp_path / "rank1").exists()

    weights = tmp_path / "run" / "model_final.pth"
    metrics = last_lines(tmp_path / "run", 1)[0]
    cfg = bua.d2.load_cfg(CONFIG, [*overrides, "MODEL.WEIGHTS", str(weights)])
    alone = bua.d2.trainer.evaluate_checkpoint(cfg)
    assert {name: metrics[name] for name in alone} == pytest.approx(alone, abs=1e-6)

    annotations = shapes_root / "shapes" / "annotations" / "shapes_test.json"
    extract(
        annotations,
        tmp_path / "extracted.tsv",
        config_file=CONFIG,
        weights=weights,
        overrides=overrides,
        image_root=shapes_root / "shapes",
        max_boxes=12,
    )
    assert list(open_features(tmp_path / "features.tsv")) == list(open_features(tmp_path / "extracted.tsv"))
    for format in ("tsv", "npz"):
        assert_same_features(tmp_path / f"features.{format}", tmp_path / "extracted.tsv")
        assert not (tmp_path / f"features.{format}.parts").exists()


def test_damaged_checkpoints_are_named_with_the_one_before(run, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("detectron2", DATASETS__TEST="()") == 0
    (folder / "last_checkpoint").unlink()
    final = folder / "model_final.pth"
    whole = final.read_bytes()
    final.write_bytes(whole[: len(whole) // 2])
    assert run("detectron2") == 2
    assert "already contains a run (model_final.pth)" in capsys.readouterr().err
    assert run("detectron2", "--resume") == 2
    assert f"--resume-from {folder}/model_0000003.pth" in capsys.readouterr().err.splitlines()[-1]
    assert run("detectron2", "--resume-from", str(folder / "model_0000003.pth"), SOLVER__OPTIMIZER="SGD") == 2
    assert "optimizer does not fit (the checkpoint is of another optimizer than SGD)" in capsys.readouterr().err
    assert final.stat().st_size == len(whole) // 2


def test_detectron2s_checkpointer_refuses_weights_that_are_not_finite_and_runs_no_code(tmp_path):
    model = torch.nn.Linear(2, 1)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert Checkpointer(torch.nn.Linear(2, 1)).load(str(tmp_path / "model_0000004.pth")) == {"iteration": 4}
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight[0, 1] = torch.inf
    with pytest.raises(NonFiniteLoss, match="iteration 10: 1 parameters are not finite, such as weight"):
        checkpointer.save("model_0000009", iteration=9)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000004.pth"]
    torch.save({"model": model.state_dict()}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"nan\.pth: weight has values that are NaN or infinite"):
        checkpointer.load(str(tmp_path / "nan.pth"))
    (tmp_path / "code.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(InputError, match=r"code\.pkl: .*objects other than tensors"):
        Checkpointer(model).load(str(tmp_path / "code.pkl"))
    blobs = {"weight": before.numpy(), "weight_momentum": before.numpy()}
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    assert list(checkpointer._load_file(str(tmp_path / "caffe2.pkl"))["model"]) == ["weight"]


def test_errors_in_workers_are_raised_unchanged(run, shapes_root, tmp_path, capsys):
    image = next((shapes_root / "shapes" / "VG_100K").glob("*.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    try:
        assert run("detectron2", DATALOADER__NUM_WORKERS=1, SOLVER__MAX_ITER=30) == 2
    finally:
        image.write_bytes(whole)
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {image}: is a truncated JPEG")


def test_a_loss_that_is_not_finite_names_the_images(run, capsys):
    assert run("detectron2", SOLVER__BASE_LR=1e20, SOLVER__WARMUP_ITERS=0) == 1
    output = capsys.readouterr()
    assert "not finite in the batch of" in output.err
    assert "Exception during training" not in output.out + output.err


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ((), {"MODEL__WEIGHTS": "none.pth"}, "none.pth: no such checkpoint file"),
        ((), {"SOLVER__IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH is 0"),
        ((), {"INPUT__FORMAT": "RGB"}, "INPUT.FORMAT is 'RGB'; bua's data loaders give BGR"),
        ((), {"MODEL__BUA__DUMP__OUTPUT": "x", "MODEL__BUA__DUMP__FORMAT": "hdf5"}, "the same number of boxes"),
        ((), {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "float16"}, "needs a GPU"),
        (("--eval-only",), {}, "MODEL.WEIGHTS: empty, and no checkpoint in"),
        (("--eval-only",), {"DATASETS__TEST": "()"}, "DATASETS.TEST: empty"),
        (("--num-gpus", "0"), {}, "--num-gpus 0"),
        (("--num-machines", "2"), {}, "--dist-url auto"),
    ],
)
def test_bad_input_is_reported_in_one_line(run, capsys, flags, changes, message):
    assert run("detectron2", *flags, **changes) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("place", ["loading", "evaluating"])
def test_an_error_in_one_process_ends_the_others_that_wait_for_it(place, tmp_path, capfd):
    """The second process fails while the first one waits for it, and the other way round."""
    assert_that_all_processes_end("detectron2", place, tmp_path, capfd)
