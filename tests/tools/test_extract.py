"""tools/extract.py with the real detector, a few channels wide."""

import base64
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_loading import load_script

from bua.checkpoint import save_checkpoint
from bua.config import load_cfg
from bua.features import open_features
from bua.modeling import build_detector

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "vg_r101.yaml"
SLIM = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RPN.CONV_DIMS", "[8]"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "160"),
]
FEATURE_DIM = 128


def load_tool():
    return load_script("tools/extract.py")


def extract(images, output, *options, weights="random", overrides=()):
    given = ["--weights", str(weights)] if weights else []
    where = ["--images", str(images), "--output", str(output), "--num-workers", "0"]
    return load_tool().main(["--config-file", str(CONFIG), *given, *where, *options, *SLIM, *overrides])


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        image = rng.integers(0, 255, (60 + 10 * i, 90, 3), np.uint8)
        cv2.imwrite(str(folder / f"COCO_val2014_{i:012d}.jpg"), image)
    return folder


def read_as_the_original(path):
    """Reads a TSV as tools/read_tsv.py of the original does."""
    csv.field_size_limit(sys.maxsize)
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    rows = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", fieldnames=fields):
            count = int(row["num_boxes"])
            for field in ("boxes", "features"):
                row[field] = np.frombuffer(base64.b64decode(row[field]), np.float32).reshape(count, -1)
            rows[int(row["image_id"])] = row
    return rows


def test_coco_images_to_the_original_format(shared_data, tmp_path):
    images = sorted((shared_data / "images").glob("*.jpg"))
    output = tmp_path / "features.tsv"
    assert extract(shared_data / "images", output, "--min-boxes", "10", "--max-boxes", "100") == 0
    rows = read_as_the_original(output)
    assert sorted(rows) == [int(path.stem[-12:]) for path in images]
    for path in images:
        row = rows[int(path.stem[-12:])]
        height, width = cv2.imread(str(path)).shape[:2]
        assert (int(row["image_w"]), int(row["image_h"])) == (width, height)
        assert 10 <= len(row["boxes"]) <= 100
        assert row["features"].shape == (len(row["boxes"]), FEATURE_DIM)
        assert row["boxes"].min() >= 0
        assert row["boxes"][:, 2].max() < width
        assert row["boxes"][:, 3].max() < height
        assert row["features"].min() >= 0


def test_weights_resume_and_other_settings(folder, tmp_path, capsys):
    torch.manual_seed(1)
    checkpoint = tmp_path / "model.pth"
    save_checkpoint(checkpoint, model=build_detector(load_cfg(CONFIG, SLIM)).state_dict())
    output = tmp_path / "features.tsv"
    assert extract(folder, output, "--max-boxes", "20", weights=checkpoint) == 0
    written = output.read_bytes()
    assert set(read_as_the_original(output)) == {0, 1, 2}

    output.write_bytes(written[:-50])
    assert extract(folder, output, "--max-boxes", "20", weights=checkpoint) == 0
    assert output.read_bytes() == written
    assert "1 images written" in capsys.readouterr().out

    assert extract(folder, output, weights=checkpoint) == 2
    assert "max_boxes 20, now it is 100" in capsys.readouterr().err
    assert extract(folder, output, "--max-boxes", "20", weights="random") == 2
    assert "weights sha256:" in capsys.readouterr().err
    other_input = ("INPUT.MIN_SIZE_TEST", "97")
    assert extract(folder, output, "--max-boxes", "20", weights=checkpoint, overrides=other_input) == 2
    assert "INPUT.MIN_SIZE_TEST 96, now it is 97" in capsys.readouterr().err
    assert output.read_bytes() == written

    by_override = extract(
        folder, output, "--max-boxes", "20", weights=None, overrides=("MODEL.WEIGHTS", str(checkpoint))
    )
    assert by_override == 0


def test_parameters_that_the_weights_lack_stay_random_only_if_allowed(folder, tmp_path, capsys, caplog):
    state = build_detector(load_cfg(CONFIG, SLIM)).state_dict()
    state = {name: value for name, value in state.items() if "attribute_predictor" not in name}
    checkpoint, output = tmp_path / "model.pth", tmp_path / "features.tsv"
    save_checkpoint(checkpoint, model=state)
    assert extract(folder, output, weights=checkpoint) == 2
    assert "attribute_predictor" in capsys.readouterr().err
    assert not output.exists()
    assert extract(folder, output, "--allow-missing", weights=checkpoint) == 0
    assert "5 parameters of the model are not in the file: roi_heads.attribute_predictor" in caplog.text


@pytest.mark.parametrize("format", ["npz", "lxmert-tsv"])
def test_labels_and_scores(folder, tmp_path, format):
    assert extract(folder, tmp_path / "out", "--format", format, "--min-boxes", "20", "--max-boxes", "20") == 0
    for regions in open_features(tmp_path / "out").values():
        assert len(regions) == 20
        assert 0 <= regions.object_ids.min() <= regions.object_ids.max() < 1600
        assert 0 <= regions.attribute_ids.min() <= regions.attribute_ids.max() < 400
        assert 0 < regions.object_scores.min() <= regions.object_scores.max() <= 1


def test_failed_images_are_reported(folder, tmp_path, capsys):
    broken = folder / "broken.jpg"
    broken.write_bytes((folder / "COCO_val2014_000000000001.jpg").read_bytes()[:400])
    assert extract(folder, tmp_path / "features.tsv") == 1
    assert "features.tsv.failures.jsonl" in capsys.readouterr().err
    failure = json.loads((tmp_path / "features.tsv.failures.jsonl").read_text())
    assert failure["path"] == str(broken)
    assert len(open_features(tmp_path / "features.tsv")) == 3


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        ([], None, "weights (--detector): none given"),
        ([], "gone.pth", "gone.pth: no such checkpoint"),
        (["--min-boxes", "50", "--max-boxes", "20"], "random", "min boxes 50, max boxes 20"),
        (["--score-threshold", "20"], "random", "score threshold 20.0"),
        (["--format", "lxmert-tsv"], "random", "ATTRIBUTES.ENABLED"),
        (["--format", "vinvl-tsv", "--grid"], "random", "grid cells have none"),
        (["--format", "hdf5"], "random", "the same number of boxes in every image; add --min-boxes 36 --max-boxes 36"),
        (["--grid", "--regressed"], "random", "--regressed and --grid: choose one"),
        (["--boxes", "gone.json"], "random", "gone.json: cannot be read"),
        (["--num-gpus", "0"], "random", "--num-gpus 0: must be 1 or more"),
        (["--num-gpus", "2", "--ray", "local"], "random", "--ray and --num-gpus"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, options, weights, message):
    overrides = ("MODEL.BUA.ATTRIBUTES.ENABLED", "False") if "lxmert-tsv" in options else ()
    output = tmp_path / "features.tsv"
    assert extract(folder, output, *options, weights=weights, overrides=overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_given_images_need_an_output(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config-file", str(CONFIG), "--weights", "random", "--images", str(folder), *SLIM]
    assert load_tool().main(arguments) == 2
    assert "output: none given" in capsys.readouterr().err
    assert not Path("output").exists()


def test_a_file_that_is_no_output_is_not_changed(folder, tmp_path, capsys):
    output = tmp_path / "notes.txt"
    output.write_text("mine")
    assert extract(folder, output) == 2
    assert "choose another output" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_many_devices_give_the_features_of_one(folder, tmp_path, caplog):
    assert extract(folder, tmp_path / "one", "--format", "flat") == 0
    assert extract(folder, tmp_path / "two", "--format", "flat", "--num-gpus", "2", "--device", "cpu") == 0
    assert_same_features(tmp_path / "one", tmp_path / "two")


def test_a_cluster_gives_the_features_of_one_device(folder, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed; run `pip install ray`")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert extract(folder, tmp_path / "one", "--format", "flat") == 0
    assert extract(folder, tmp_path / "two", "--format", "flat", "--ray", "local", "--shard-size", "3") == 0
    assert_same_features(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two.shards").exists()


@pytest.mark.parametrize("options", [["--batch-size", "3"], ["--num-workers", "2"]])
def test_speed_options_change_nothing(folder, tmp_path, options):
    assert extract(folder, tmp_path / "one", "--format", "flat") == 0
    assert extract(folder, tmp_path / "two", "--format", "flat", *options) == 0
    assert_same_features(tmp_path / "one", tmp_path / "two")


def assert_same_features(a, b):
    a, b = open_features(a), open_features(b)
    assert set(a) == set(b)
    for image_id in a:
        np.testing.assert_allclose(a[image_id].boxes, b[image_id].boxes, atol=1e-3)
        np.testing.assert_allclose(a[image_id].features, b[image_id].features, rtol=1e-4, atol=1e-5)


def test_grid_regressed_and_given_boxes(folder, tmp_path):
    assert extract(folder, tmp_path / "grid", "--grid") == 0
    for regions in open_features(tmp_path / "grid").values():
        assert regions.features.shape[1] == FEATURE_DIM
        assert regions.boxes[0].tolist()[:2] == [0, 0]
        assert regions.boxes[-1].tolist()[2:] == [regions.width - 1, regions.height - 1]

    given = tmp_path / "boxes.json"
    given.write_text(json.dumps({str(i): [[10, 10, 40, 40], [5, 5, 20, 30]] for i in range(3)}))
    assert extract(folder, tmp_path / "given", "--boxes", str(given), "--format", "npz") == 0
    for regions in open_features(tmp_path / "given").values():
        assert regions.boxes.tolist() == [[10, 10, 40, 40], [5, 5, 20, 30]]
        assert len(regions.object_ids) == 2

    assert extract(folder, tmp_path / "proposals") == 0
    assert extract(folder, tmp_path / "regressed", "--regressed") == 0
    proposals, regressed = open_features(tmp_path / "proposals"), open_features(tmp_path / "regressed")
    assert any(not np.array_equal(proposals[i].boxes, regressed[i].boxes) for i in proposals)


def test_on_error_stop_ends_at_the_first_image_that_fails(folder, tmp_path, capsys):
    (folder / "a.jpg").write_bytes(b"")
    assert extract(folder, tmp_path / "features.tsv", "--on-error", "stop") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder / 'a.jpg'}: ")
    assert error.endswith("; --on-error skip continues with the other images")


# Runs a command that is interrupted when it begins to read a certain image.
INTERRUPTED = """
import os, signal, sys
from bua.commands import main
from bua.extraction import extractor

naming_image = extractor.naming_image

def interrupted(path):
    if path.endswith("2.jpg"):
        os.kill(os.getpid(), signal.SIGINT)
    return naming_image(path)

extractor.naming_image = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_after_ctrl_c_the_same_command_continues(folder, tmp_path):
    output = tmp_path / "features.tsv"
    options = ["--weights", "random", "--images", str(folder), "--output", str(output)]
    command = [sys.executable, "-c", INTERRUPTED, "extract", "--config-file", str(CONFIG), *options, *SLIM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, timeout=300)
    errors = run.stderr
    assert run.returncode == 130
    assert errors.splitlines()[-2:] == [
        errors.splitlines()[-2],
        "interrupted",
    ]
    assert "run the same command again to continue" in errors.splitlines()[-2]
    assert extract(folder, output) == 0
    assert len(open_features(output)) == 3


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as exit_:
        load_tool().main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for option in ("--images", "--boxes", "--grid", "--regressed", "--num-gpus", "--ray", "--precision", "--on-error"):
        assert option in text
    # The two options that take weights.
    assert " ".join(text.split()).count("`random` for random weights") == 2
