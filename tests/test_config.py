import importlib
import os
import re
from pathlib import Path

import pytest

from bua.config import add_bua_config, check_device, get_cfg, load_cfg
from bua.errors import InputError

# Nine more lists, each of ten times the one before.
LAUGHS = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
CONFIGS = sorted([*Path("configs").glob("*.yaml"), *Path("configs", "grid_feats").glob("*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_file_loads(path):
    assert load_cfg(path).VERSION == 2


@pytest.mark.parametrize("task", ["vqa", "captioning", "grounding"])
def test_every_config_file_of_a_task_loads(task):
    load = importlib.import_module(f"bua.{task}.config").load_cfg
    files = sorted(Path("configs", task).rglob("*.yaml"))
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
        ("", "not a config file"),
        ("# nothing but a comment\n", "not a config file"),
        ("_BASE_: missing.yaml\n", "_BASE_ names"),
        ("_BASE_: .\n", "_BASE_ names ., which is not a file"),
        ("_BASE_: 3\n", "_BASE_ is '3'; give the name of a file"),
        ("_BASE_: [mine.yaml, 3]\n", "_BASE_ is "),
        ("_BASE_: {a: 1}\n", "_BASE_ is "),
        ("_BASE_: ~nobody-of-this-name/a.yaml\n", "which is not a file"),
        (f"_BASE_: {'a' * 300}.yaml\n", "which is not a file"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + LAUGHS, "its aliases (*name) stand for too many values"),
        ("a: &a {b: [*a]}\n", "its aliases (*name) stand for too many values"),
        ("a: &a {k: 1}\n" + LAUGHS.replace("[", "{<<: [").replace("]", "]}"), "too many values"),
        ("a: " + "[" * 2000, "not a YAML file"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "not a YAML file of mappings, lists, texts and numbers alone",
        ),
        ("a: !!bool maybe\n", "not a YAML file"),
        ("a: !!timestamp now\n", "not a YAML file"),
        (f"a: {'1' * 5000}\n", "not a YAML file"),
        ("a: 2001-99-99\n", "not a YAML file"),
        ("SOLVER:\n  MAX_ITER:\n", "SOLVER.MAX_ITER is 'None', which is not of its kind"),
        ("SOLVER:\n  BASE_LR: .nan\n", "SOLVER.BASE_LR is 'nan', which is not of its kind"),
        ("SOLVER:\n  STEPS: [many]\n", "SOLVER.STEPS is "),
        ("SOLVER:\n  WEIGHT_DECAY_BIAS: heavy\n", "SOLVER.WEIGHT_DECAY_BIAS is 'heavy'"),
        ("DATASETS:\n  TRAIN: [3]\n", "DATASETS.TRAIN is '[3]'"),
        ("INPUT:\n  MIN_SIZE_TRAIN: [0]\n", "INPUT.MIN_SIZE_TRAIN is (0,); it must be 1 or more"),
        ("INPUT:\n  MIN_SIZE_TRAIN: [0.5]\n", "INPUT.MIN_SIZE_TRAIN is (0.5,); it must be 1 or more"),
        ("MODEL:\n  PIXEL_STD: [1.0, 1.0]\n", "MODEL.PIXEL_STD is [1.0, 1.0]; it must be 3 numbers"),
        ("MODEL:\n  RPN:\n    NMS_THRESH: 7.0\n", "MODEL.RPN.NMS_THRESH is 7.0; it must be from 0 to 1"),
        ("DATALOADER:\n  NUM_WORKERS: -1\n", "DATALOADER.NUM_WORKERS is -1; it must be 0 or more"),
        ("_BASE_: mine.yaml\n", "its _BASE_ refers back to the file itself"),
        ("SOLVER:\n  CHECKPOINT_PERIOD: 0\n", "SOLVER.CHECKPOINT_PERIOD is 0; it must be 1 or more"),
        ("FLOAT32_PRECISION: low\n", "FLOAT32_PRECISION is 'low'; use one of highest, high, medium"),
        ("INPUT:\n  MIN_SIZE_TRAIN: ()\n", "INPUT.MIN_SIZE_TRAIN is (); it must not be empty"),
        ("MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: [[]]\n", "MODEL.ANCHOR_GENERATOR.SIZES is [[]]"),
        ("MODEL:\n  RPN:\n    CONV_DIMS: []\n", "MODEL.RPN.CONV_DIMS is []; it must not be empty"),
        ("MODEL:\n  RPN:\n    CONV_DIMS: [-2]\n", "it must be whole numbers of channels of 1 or more, or -1"),
        ("MODEL:\n  RPN:\n    IOU_THRESHOLDS: [0.7, 0.3]\n", "it must be in ascending order"),
        ("MODEL:\n  ROI_HEADS:\n    IOU_THRESHOLDS: []\n", "MODEL.ROI_HEADS.IOU_THRESHOLDS is []; it must not be"),
        ("MODEL:\n  ROI_HEADS:\n    IOU_THRESHOLDS: [1.5]\n", "IOU_THRESHOLDS is [1.5]; it must be from 0 to 1"),
        ("MODEL:\n  BUA:\n    VINVL: {MAX_NUM_ATTR_PER_OBJ: 0}\n", "MAX_NUM_ATTR_PER_OBJ is 0; it must be 1 or more"),
        ("MODEL:\n  BUA:\n    BOX_CONVENTION: pascal\n", "MODEL.BUA.BOX_CONVENTION is 'pascal'"),
        ("MODEL:\n  RESNETS:\n    RES2_OUT_CHANNELS: 1000000000\n", "is 1000000000; it must be 16384 or less"),
        ("MODEL:\n  BUA:\n    VINVL: {NMS_FILTER: 2}\n", "VINVL.NMS_FILTER is 2, which has an effect only where"),
        ("MODEL:\n  BUA:\n    EFFICIENTDET: {NAME: d2}\n", "MODEL.META_ARCHITECTURE is EfficientDet; leave it out"),
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


def test_a_base_of_many_files_is_read_once(tmp_path):
    """Each file has the one before it as its base twice, which would be 2**40 files if each were read every time."""
    (tmp_path / "0.yaml").write_text("SEED: 7\nOUTPUT_DIR: first\n")
    for number in range(1, 41):
        base = f"{number - 1}.yaml"
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: [{base}, {base}]\nOUTPUT_DIR: out{number}\n")
    cfg = load_cfg(tmp_path / "40.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (7, "out40")


def test_one_text_on_the_command_line_is_a_list_of_one():
    cfg = load_cfg("shapes.yaml", ["DATASETS.TRAIN", "mine_train", "DATASETS.TEST", "('a', 'b')", "OUTPUT_DIR", "mine"])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR) == (("mine_train",), ("a", "b"), "mine")
    # Other lists still need brackets.
    with pytest.raises(InputError, match=r"SOLVER\.STEPS: Type mismatch"):
        load_cfg("shapes.yaml", ["SOLVER.STEPS", "many"])


def test_a_named_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=r"pipe\.yaml: is not a regular file; name a YAML file"):
        load_cfg(tmp_path / "pipe.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml: this config file does not exist"):
        load_cfg(tmp_path / "nothing.yaml")
    # Names of files beside it are proposed as those of configs/ are.
    (tmp_path / "mine.yaml").write_text("SEED: 7\n")
    for name, right in ((tmp_path / "min.yaml", tmp_path / "mine.yaml"), ("vg_r110.yaml", "vg_r101.yaml")):
        with pytest.raises(InputError, match=f"did you mean {re.escape(str(right))}"):
            load_cfg(name)


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


@pytest.mark.parametrize("task", ["vqa", "captioning", "grounding"])
def test_batches_of_a_task_s_evaluation_are_not_empty(task):
    load = importlib.import_module(f"bua.{task}.config").load_cfg
    file = next(iter(sorted(Path("configs", task).glob("*.yaml"))))
    with pytest.raises(InputError, match=r"TEST.IMS_PER_BATCH is 0; it must be 1 or more"):
        load(file, ["TEST.IMS_PER_BATCH", "0"])


def test_aliases_and_optional_values_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("SOLVER: {WEIGHT_DECAY_BIAS: null, STEPS: &steps [3, 4]}\nMODEL: {BUA: {FREEZE: [a]}}\n")
    cfg = load_cfg(path, ["MODEL.BUA.FREEZE", "['b']"])
    assert (cfg.SOLVER.WEIGHT_DECAY_BIAS, cfg.SOLVER.STEPS, cfg.MODEL.BUA.FREEZE) == (None, (3, 4), ["b"])


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "not a device"),
        ("", "not a device"),
        ("cuda:99", "this machine has"),
        *((name, "which bua does not support") for name in ("mps", "xpu", "meta", "mps:0")),
    ],
)
def test_a_missing_device_is_named(device, message):
    check_device("cpu")
    with pytest.raises(InputError, match=f"MODEL.DEVICE is '{device}'.*{message}"):
        check_device(device)
    with pytest.raises(InputError, match=f"^--device is '{device}'.*{message}"):
        check_device(device, "--device")
