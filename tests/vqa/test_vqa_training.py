"""From the official files to a trained model, on a world that an oracle sees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_questions import COLORS, FEATURE_DIM, write_world

from bua.errors import InputError
from bua.io.files import exclusive
from bua.tasks.region_batches import BatchMaker, RegionReader
from bua.vqa import training
from bua.vqa.config import load_cfg
from bua.vqa.cooccurrence import prepare_word_vectors
from bua.vqa.dataset import prepare_vqa
from bua.vqa.inference import load_vqa
from bua.vqa.training import BOX_FACTOR, VqaTraining, train_vqa

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "vqa"
SMALL = ["SOLVER.IMS_PER_BATCH", "32", "SOLVER.BASE_LR", "0.02", "SOLVER.EPOCH_FACTORS", "[1.0]", "SEED", "3"]
SIZES = {"updown": ["MODEL.UPDOWN.HIDDEN_DIM", "32"], "ban": ["MODEL.BAN.HIDDEN_DIM", "32"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with ``vqa``, ``prepared`` and ``features.flat``."""
    root = tmp_path_factory.mktemp("world")
    write_world(root, {"train": 120, "val": 30, "test": 10})
    prepare_vqa(root / "vqa", root / "prepared", min_count=2)
    return root


def configure(world: Path, output: Path, *overrides, name: str = "updown"):
    paths = ["DATA.FOLDER", world / "prepared", "DATA.FEATURES", f"('{world / 'features.flat'}',)"]
    options = [*SMALL, *SIZES[name], *paths, "OUTPUT_DIR", output, "MODEL.DEVICE", "cpu", *overrides]
    return load_cfg(CONFIGS / f"shapes_{name}.yaml", [str(option) for option in options])


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [line["total_loss"] for line in lines if "total_loss" in line]


def weights(output: Path, name: str = "model_final.pth") -> dict:
    return torch.load(output / name, weights_only=True)["model"]


def assert_equal(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("name", "epochs"), [("updown", 25), ("ban", 10)])
def test_learns_by_looking(world, tmp_path, name, epochs):
    scores = train_vqa(configure(world, tmp_path, "SOLVER.EPOCHS", epochs, name=name))
    assert scores["upper_bound"] == 100
    assert scores["soft_score"] > 80
    log = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    in_training = {line["epoch"]: line["train_soft_score"] for line in log if "epoch" in line}
    assert list(in_training) == list(range(1, epochs + 1))
    assert in_training[1] < in_training[epochs]
    assert 75 < in_training[epochs] <= 100


def test_the_score_in_training_is_that_of_the_answers_given(world, tmp_path):
    """Without dropout and at a learning rate of 0, they are the answers of the model that is saved."""
    options = ["MODEL.UPDOWN.ATTENTION_DROPOUT", 0.0, "MODEL.UPDOWN.CLASSIFIER_DROPOUT", 0.0, "SOLVER.BASE_LR", 1e-30]
    cfg = configure(world, tmp_path, *options, "SOLVER.EPOCHS", 1, "DATA.VAL", "train", "SOLVER.IMS_PER_BATCH", 10)
    found = train_vqa(cfg)["soft_score"]
    log = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    (line,) = (line for line in log if "epoch" in line)
    assert line["train_soft_score"] == pytest.approx(found, abs=1e-3)


def test_the_text_stream_starts_with_the_vectors_of_the_answers(world, tmp_path):
    (tmp_path / "glove.txt").write_text("red 1 2\nstar 3 4\n")
    prepare_vqa(world / "vqa", tmp_path / "prepared", min_count=2)
    prepare_word_vectors(tmp_path / "prepared", tmp_path / "glove.txt", world / "vqa", dim=2)
    options = ["DATA.FOLDER", tmp_path / "prepared", "MODEL.UPDOWN.EMBEDDING_DIM", 2, "DATA.ANSWER_VECTORS", True]
    with pytest.raises(InputError, match=r"DATA\.ANSWER_VECTORS is True, but only UpDown's classifier with two"):
        configure(world, tmp_path / "output", *options)
    trained = VqaTraining(configure(world, tmp_path / "output", *options, "MODEL.UPDOWN.TWO_STREAMS", True)).trained
    weight = trained.model.classifier.text_answers.linear.weight()
    assert weight[trained.answers.label("red")].tolist() == pytest.approx([1, 2])


@pytest.mark.parametrize(("key", "value"), [("ATTENTION", "sum"), ("ACTIVATION", "swish")])
def test_choices_of_the_model_are_named(world, tmp_path, key, value):
    with pytest.raises(InputError, match=f"MODEL.UPDOWN.{key} is '{value}'; use one of '"):
        configure(world, tmp_path, f"MODEL.UPDOWN.{key}", value)


def test_what_questions_alone_give_away(world, tmp_path):
    blind = train_vqa(configure(world, tmp_path, "SOLVER.EPOCHS", 4, "DATA.LOOK", False))
    assert blind["soft_score"] < 60
    assert not load_vqa(tmp_path / "model_best.pth").cfg.DATA.LOOK


def test_a_checkpoint_has_all_that_answering_needs(world, tmp_path):
    options = ["SOLVER.EPOCHS", 1, "MODEL.UPDOWN.STANDARDIZE", True, "DATA.BOXES", False]
    train_vqa(configure(world, tmp_path, *options))
    for name in ("model_best.pth", "model_final.pth"):
        vqa = load_vqa(tmp_path / name)
        assert set(COLORS) <= set(vqa.answers.answers)
        assert "star" in vqa.words
        assert vqa.model.feature_dim == FEATURE_DIM
        # Features of the oracle are between 0 and 1.2, and mostly below 0.2.
        assert 0.05 < vqa.model.standardize.mean.mean() < 0.5
        assert_equal(vqa.model.state_dict(), weights(tmp_path, name))


@pytest.mark.parametrize("look", [True, False])
def test_boxes_count_more_than_a_feature_once_standardised(world, tmp_path, look):
    options = ["DATA.BOXES", True, "DATA.LOOK", look, "MODEL.UPDOWN.STANDARDIZE", True]
    trainer = VqaTraining(configure(world, tmp_path, *options))
    reader = RegionReader.open([world / "features.flat"])
    regions = BatchMaker(np.unique(trainer.dataset.image_ids), reader, "train")(np.arange(120))
    features = trainer.trained.visible(regions).features
    standardized = trainer.trained.model.standardize(features)[regions.mask]
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(FEATURE_DIM + 7), atol=1e-4, rtol=0)
    # All boxes of this world have the same width, height and area.
    expected = torch.tensor([1.0] * FEATURE_DIM + [BOX_FACTOR] * 4)
    torch.testing.assert_close(standardized.std(dim=0, correction=0)[:-3], expected)


def test_a_killed_run_goes_on_as_if_it_never_stopped(world, tmp_path, monkeypatch):
    train_vqa(configure(world, tmp_path / "whole", "SOLVER.EPOCHS", 3))

    calls, loss = [], training.vqa_loss

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > 17:
            raise RuntimeError("killed")
        return loss(*args, **kwargs)

    killed = configure(world, tmp_path / "killed", "SOLVER.EPOCHS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(training, "vqa_loss", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train_vqa(killed)
    with pytest.raises(InputError, match="already contains a run"):
        train_vqa(killed)
    train_vqa(killed, resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_second_training_in_the_same_folder_is_refused(world, tmp_path):
    with exclusive(tmp_path, tmp_path / "training.lock"), pytest.raises(InputError, match="is writing to it; wait"):
        train_vqa(configure(world, tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["updown", "ban"])
def test_features_on_the_device_change_nothing(world, tmp_path, name):
    sizes = ["SOLVER.EPOCHS", 2, f"MODEL.{name.upper()}.STANDARDIZE", True]
    scores = [
        train_vqa(configure(world, tmp_path / str(kept), *sizes, "DATA.ON_DEVICE", kept, name=name))
        for kept in (False, True)
    ]
    assert scores[0] == scores[1]
    assert losses(tmp_path / "False") == losses(tmp_path / "True")
    assert_equal(weights(tmp_path / "False"), weights(tmp_path / "True"))


def test_parts_of_a_batch_and_low_precision_change_little(world, tmp_path):
    """Without dropout, the loss over an epoch is nearly the same."""
    still = ["MODEL.UPDOWN.ATTENTION_DROPOUT", 0.0, "MODEL.UPDOWN.CLASSIFIER_DROPOUT", 0.0, "SOLVER.EPOCHS", 2]
    variants = {"plain": [], "parts": ["SOLVER.ACCUMULATE", 2], "bf16": ["SOLVER.AMP.ENABLED", True]}
    final = {}
    for name, overrides in variants.items():
        train_vqa(configure(world, tmp_path / name, *still, *overrides))
        final[name] = losses(tmp_path / name)[-1]
        assert all(value.dtype == torch.float32 for value in weights(tmp_path / name).values())
    assert final["parts"] == pytest.approx(final["plain"], rel=0.2)
    assert final["bf16"] == pytest.approx(final["plain"], rel=0.05)


def test_train_and_val_together_without_validation(world, tmp_path):
    together = ["DATA.TRAIN", "('train', 'val')", "DATA.VAL", "", "SOLVER.EPOCHS", 1]
    assert train_vqa(configure(world, tmp_path, *together)) == {}
    assert not (tmp_path / "model_best.pth").exists()
    assert load_vqa(tmp_path / "model_final.pth")


def test_word_vectors_by_their_former_name(world, tmp_path):
    assert configure(world, tmp_path, "DATA.WORD_VECTORS", "seed").DATA.WORD_VECTORS == "authors"


def test_settings_that_cannot_be_used(world, tmp_path):
    (world / "vqa" / "v2_mscoco_test2015_annotations.json").unlink(missing_ok=True)
    prepare_vqa(world / "vqa", tmp_path / "prepared", min_count=2)
    # Images of training alone.
    write_world(tmp_path / "few", {"train": 120})
    few = f"('{tmp_path / 'few' / 'features.flat'}',)"
    for overrides, message in (
        (["DATA.FOLDER", ""], "DATA.FOLDER: empty"),
        (["DATA.FEATURES", "()"], "DATA.FEATURES: empty"),
        (["DATA.FOLDER", tmp_path], "prepare it with bua prepare-vqa"),
        (["DATA.TRAIN", "('trian',)"], "no such split"),
        (["DATA.FOLDER", tmp_path / "prepared", "DATA.VAL", "test"], "has no answers"),
        (["DATA.FEATURES", few], r"lacks 30 of the 30 images of .*val\.npz: 121"),
        (["DATA.WORD_VECTORS", "authors"], r"prepare it with bua prepare-vqa --glove"),
        (["SOLVER.ACCUMULATE", 5], "multiple of SOLVER.ACCUMULATE"),
        (["DATA.ON_DEVICE", "yes"], "DATA.ON_DEVICE is 'yes'; use one of None, False, True, 'auto'"),
        (["FLOAT32_PRECISION", "tf32"], "FLOAT32_PRECISION is 'tf32'; use one of highest, high, medium"),
    ):
        with pytest.raises(InputError, match=message) as error:
            train_vqa(configure(world, tmp_path / "run", "SOLVER.EPOCHS", 1, *overrides))
        assert "\n" not in str(error.value)
    for overrides, message in (
        (["MODEL.NAME", "MCAN"], "use one of 'UpDown', 'BAN'"),
        (["DATA.WORD_VECTORS", "glove"], "use one of '', 'authors', 'tfidf'"),
        (["MODEL.UPDOWN.HIDEN_DIM", "3"], "did you mean MODEL.UPDOWN.HIDDEN_DIM?"),
    ):
        with pytest.raises(InputError, match=message):
            configure(world, tmp_path, *overrides)
