import importlib
from pathlib import Path

import pytest

from bua.config import add_bua_config, check_device, get_cfg, load_cfg
from bua.errors import InputError

CONFIGS = sorted(Path("configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_file_loads(path):
    assert load_cfg(path).VERSION == 2


@pytest.mark.parametrize("task", ["vqa", "captioning", "grounding"])
def test_every_config_file_of_a_task_loads(task):
    load = importlib.import_module(f"bua.{task}.config").load_cfg
    files = sorted(Path("configs", task).glob("*.yaml"))
    assert files
    for path in files:
        assert load(path).OUTPUT_DIR.startswith("output/")


def test_a_file_and_then_overrides_replace_the_defaults():
    overrides = ["SOLVER.BASE_LR", "0.5", "MODEL.WEIGHTS", "", "DATASETS.TRAIN", "('a', 'b')"]
    cfg = load_cfg("configs/vg_r101.yaml", overrides)
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.MODEL.WEIGHTS == ""
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.MODEL.META_ARCHITECTURE == "AttributeRCNN"  # from _BASE_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  DEPHT: 3\n", "unknown config key MODEL.DEPHT"),
        ("SOLVER:\n  BASE_LRR: 3\n", "unknown config key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR?"),
        ("SOLVER:\n  MAX_ITER: many\n", "SOLVER.MAX_ITER"),
        ("MODEL: [\n", "not a YAML file"),
        ("- a\n- b\n", "not a config file"),
        ("_BASE_: missing.yaml\n", "_BASE_ names"),
        ("_BASE_: mine.yaml\n", "its _BASE_ refers back to the file itself"),
        ("SOLVER:\n  CHECKPOINT_PERIOD: 0\n", "SOLVER.CHECKPOINT_PERIOD is 0; it must be 1 or more"),
        ("FLOAT32_PRECISION: low\n", "FLOAT32_PRECISION is 'low'; use one of highest, high, medium"),
        ("INPUT:\n  MIN_SIZE_TRAIN: ()\n", "INPUT.MIN_SIZE_TRAIN is (); it must not be empty"),
        ("MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: [[]]\n", "MODEL.ANCHOR_GENERATOR.SIZES is [[]]"),
        ("MODEL:\n  BUA:\n    BOX_CONVENTION: pascal\n", "MODEL.BUA.BOX_CONVENTION is 'pascal'"),
    ],
)
def test_the_error_names_the_file_and_what_is_wrong_with_it(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_cfg(path)
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml: this config file does not exist"):
        load_cfg(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["SOLVER.BASE_LR"], "must be pairs"), (["SOLVER.BASE_RL", "1"], "unknown config key SOLVER.BASE_RL")],
)
def test_the_error_names_what_is_wrong_with_an_override(overrides, message):
    with pytest.raises(InputError, match=f"command line: .*{message}"):
        load_cfg("configs/shapes.yaml", overrides)


def test_bua_keys_can_be_added_to_another_configuration():
    cfg = get_cfg()
    expected = cfg.MODEL.BUA.clone()
    del cfg.MODEL["BUA"]
    add_bua_config(cfg)
    assert expected == cfg.MODEL.BUA


@pytest.mark.parametrize(("device", "message"), [("gpu", "not a device"), ("cuda:99", "this machine has")])
def test_a_missing_device_is_named(device, message):
    check_device("cpu")
    with pytest.raises(InputError, match=f"MODEL.DEVICE is '{device}'.*{message}"):
        check_device(device)
    with pytest.raises(InputError, match=f"^--device is '{device}'.*{message}"):
        check_device(device, "--device")
