"""From caption files to scores through the tools, on Shapes seen by an oracle."""

import json
from pathlib import Path

import pytest
import torch
from caption_world import COCO, ROOT, losses_of, scores_of, settings, tool, write_world

import bua.captioning.training as training
from bua.captioning.config import load_cfg
from bua.captioning.dataset import CaptionDataset
from bua.captioning.training import train_caption
from bua.errors import InputError

CONFIGS = ROOT / "configs" / "captioning"
CROSS_ENTROPY, SELF_CRITICAL = str(CONFIGS / "shapes_updown.yaml"), str(CONFIGS / "shapes_scst.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("captions"), {"train": 160, "val": 40, "test": 40})


def run(config: str, world: Path, output: str, *more: str, resume: bool = False) -> Path:
    train_caption(load_cfg(config, settings(world, output, *more)), resume)
    return world / output


@pytest.fixture(scope="module")
def learned(world) -> Path:
    """A captioner that cross-entropy trained."""
    return run(CROSS_ENTROPY, world, "xe", "SOLVER.EPOCHS", "10", "SOLVER.BASE_LR", "0.015")


def test_learns_what_an_image_is_of(world, learned):
    blind = run(CROSS_ENTROPY, world, "blind", "SOLVER.EPOCHS", "10", "SOLVER.BASE_LR", "0.015", "DATA.LOOK", "False")
    assert scores_of(learned)[-1] > 1.2 * scores_of(blind)[-1] > 0


@pytest.mark.parametrize("config", [CROSS_ENTROPY, SELF_CRITICAL], ids=["cross_entropy", "self_critical"])
def test_a_run_that_broke_down_goes_on_to_the_same_losses(world, learned, tmp_path, monkeypatch, config):
    more = ["DATA.TRAIN", "('val', 'test')", "MODEL.UPDOWN.DROPOUT", "0.3", "SOLVER.EPOCHS", "5"]
    more += ["SOLVER.IMS_PER_BATCH", "10", "DATA.MAX_LENGTH", "8", "SOLVER.SELF_CRITICAL.SAMPLES", "2"]
    more += ["SOLVER.SCHEDULED_SAMPLING.MOST", "0.4", "SOLVER.SCHEDULED_SAMPLING.EPOCHS", "1"]
    more += ["SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "0", "MODEL.WEIGHTS", str(learned / "model_best.pth")]
    name = Path(config).stem
    whole = run(config, world, f"whole_{name}", *more)

    calls, function = [], "self_critical_loss" if config == SELF_CRITICAL else "caption_loss"
    original = getattr(training, function)

    def breaks_down(*args, **kwargs):
        calls.append(1)
        if len(calls) == 29:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(training, function, breaks_down)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config, world, f"parts_{name}", *more)
    parts = run(config, world, f"parts_{name}", *more, resume=True)
    assert losses_of(whole) == losses_of(parts)
    assert len(losses_of(whole)) == 2
    weights = [torch.load(output / "model_final.pth", weights_only=True)["model"] for output in (whole, parts)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_captions_drawn_at_random_score_better_and_better(world, learned):
    more = ["MODEL.WEIGHTS", str(learned / "model_best.pth"), "SOLVER.EPOCHS", "8", "TEST.EVAL_PERIOD", "0"]
    losses = list(losses_of(run(SELF_CRITICAL, world, "drawn", *more, "SOLVER.BASE_LR", "0.003")).values())
    assert -losses[-1] > 1.08 * -losses[0] > 0


@pytest.mark.parametrize(("method", "constrained"), [("beam", True), ("greedy", False), ("leave_one_out", False)])
def test_only_the_beam_is_constrained_in_training(world, learned, monkeypatch, method, constrained):
    """The loss is of the model's own distribution; with words forbidden, captions are drawn from another."""
    given, original = [], training.self_critical_loss

    def remember(*args, **kwargs):
        given.append(kwargs["constraints"])
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "self_critical_loss", remember)
    more = ["MODEL.WEIGHTS", str(learned / "model_best.pth"), "SOLVER.EPOCHS", "1", "TEST.EVAL_PERIOD", "0"]
    more += ["DATA.TRAIN", "('val',)", "SOLVER.SELF_CRITICAL.METHOD", method]
    run(SELF_CRITICAL, world, f"constraints_{method}", *more)
    assert given[0].no_word_twice_in_a_row is constrained
    assert (given[0].repeatable is not None) is constrained
    assert list(given[0].suppress)


def test_frequencies_from_a_tool(world, learned, tmp_path, capsys):
    count, output = tool("datasets/count_caption_ngrams.py"), tmp_path / "new" / "frequencies.npz"
    assert count(["--folder", str(world / "prepared"), "--splits", "train", "--output", str(output)]) == 0
    assert "n-grams of the captions of 160 images" in capsys.readouterr().out
    dataset = CaptionDataset.load(world / "prepared", "train")
    ids = dataset.image_ids[:50].tolist()
    for end in (False, True):
        candidates = [captions[0] for captions in list(dataset.references(end=end).values())[1:51]]
        own = training.build_reward(dataset, end=end)(candidates, ids)
        assert (training.build_reward(dataset, end=end, frequencies=str(output))(candidates, ids) == own).all()
    assert count(["--folder", str(world / "prepared"), "--splits", "val", "--output", str(output)]) == 0
    with pytest.raises(InputError, match=f"{output}: lacks n-grams of .*train.npz; count them again"):
        training.build_reward(dataset, end=False, frequencies=str(output))


def test_the_gru_variant_trains_in_bfloat16_on_its_first_regions(world):
    more = ["DATA.MAX_BOXES", "2", "DATA.BOXES", "True", "SOLVER.EPOCHS", "1", "SOLVER.AMP.ENABLED", "True"]
    output = run(str(CONFIGS / "shapes_gru.yaml"), world, "gru", *more, "DATA.TRAIN", "('val',)")
    assert scores_of(output)[0] >= 0


@pytest.mark.parametrize("name", ["updown", "updown_scst", "gru", "shapes_updown", "shapes_scst", "shapes_gru"])
def test_configurations_say_what_their_originals_do(name):
    cfg = load_cfg(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])
    variant = name.rpartition("_")[2]
    assert {"updown": "cross_entropy", "scst": "self_critical", "gru": "cross_entropy"}[variant] == cfg.SOLVER.LOSS
    cell, boxes = ("gru", 10) if variant == "gru" else ("lstm", 100)
    assert (cell, boxes) == (cfg.MODEL.UPDOWN.CELL, cfg.DATA.MAX_BOXES)


def test_what_cannot_be_used(world, learned, tmp_path, capsys):
    """Each has one line, before anything is trained."""
    other = write_world(tmp_path, {"train": 30, "val": 5, "test": 5}, seed=5)
    best = str(learned / "model_best.pth")
    main = tool("tools/train_caption.py")
    capsys.readouterr()
    for config, given, message in (
        (CROSS_ENTROPY, ["DATA.FOLDER", "''"], "DATA.FOLDER: empty"),
        (CROSS_ENTROPY, ["DATA.FEATURES", "()"], "DATA.FEATURES: empty"),
        (CROSS_ENTROPY, ["DATA.VAL", "dev"], "no such split"),
        (CROSS_ENTROPY, ["DATA.TRAIN", "('train', 'restval')"], "no such split"),
        (CROSS_ENTROPY, ["MODEL.UPDOWN.CELL", "rnn"], "MODEL.UPDOWN.CELL is 'rnn'; use one of 'lstm', 'gru'"),
        (CROSS_ENTROPY, ["SOLVER.LOSS", "cider"], "SOLVER.LOSS is 'cider'"),
        (CROSS_ENTROPY, ["DECODING.BEAM", "0"], "DECODING.BEAM is 0; it must be 1 or more"),
        (CROSS_ENTROPY, ["MODEL.UPDOWN.SPECIAL", "1"], "unknown config key MODEL.UPDOWN.SPECIAL"),
        (CROSS_ENTROPY, ["MODEL.DEVICE", "gpu"], "not a device"),
        (CROSS_ENTROPY, ["DATA.FEATURES", f"('{other / 'oracle.flat'}',)"], "images of "),
        (CROSS_ENTROPY, ["MODEL.WEIGHTS", str(tmp_path / "none.pth")], "none.pth"),
        (SELF_CRITICAL, ["MODEL.WEIGHTS", "''"], "MODEL.WEIGHTS: empty; self-critical training starts"),
        (SELF_CRITICAL, ["MODEL.WEIGHTS", best, "MODEL.UPDOWN.HIDDEN_DIM", "16"], "does not fit MODEL.UPDOWN"),
        (SELF_CRITICAL, ["MODEL.WEIGHTS", best, "SOLVER.SELF_CRITICAL.SAMPLES", "1"], "must be 2 or more"),
        (SELF_CRITICAL, ["MODEL.WEIGHTS", best, "SOLVER.SELF_CRITICAL.FREQUENCIES", "no.npz"], "no.npz: no such file"),
        (
            SELF_CRITICAL,
            [
                "MODEL.WEIGHTS",
                best,
                "DATA.FOLDER",
                str(other / "prepared"),
                "DATA.FEATURES",
                f"('{other}/oracle.flat',)",
            ],
            "has another vocabulary than",
        ),
    ):
        output = world / "refused"
        assert main(["--config-file", config, *settings(world, "refused", *given)]) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not output.exists()


def test_images_without_features_are_counted(world, tmp_path, capsys):
    cut = json.loads((world / "image_data.json").read_text())
    (tmp_path / "annotations").symlink_to(world / "annotations")
    (tmp_path / "image_data.json").write_text(json.dumps([*cut[1:200], {"image_id": 201}]))
    features = tmp_path / "some.flat"
    oracle = ["--root", str(tmp_path), "--name", "world", "--ids", "coco", "--output", str(features)]
    assert tool("datasets/make_oracle_features.py")(oracle) == 0
    assert "199 images; 41 without a COCO id were left out" in capsys.readouterr().out
    more = ["DATA.FEATURES", f"('{features}',)"]
    assert tool("tools/train_caption.py")(["--config-file", CROSS_ENTROPY, *settings(world, "no", *more)]) == 2
    assert f"lacks 1 of the 160 images of {world}/prepared/train.npz: {COCO + 1};" in capsys.readouterr().err
