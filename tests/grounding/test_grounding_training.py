"""From Flickr30k Entities' files to scores through the tools, on Shapes seen by an oracle; then a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from grounding_examples import oracle_regions, write_entities, write_oracle_features
from script_loading import load_script

from bua.checkpoint import read_checkpoint, save_checkpoint
from bua.errors import InputError
from bua.grounding import BANGrounding
from bua.grounding.config import load_cfg
from bua.grounding.dataset import GroundingDataset, prepare_flickr30k
from bua.grounding.inference import ground_phrases, load_grounding
from bua.grounding.training import train_grounding

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "grounding" / "shapes.yaml")


def tool(path: str):
    return load_script(path).main


def overrides(root: Path, *more: str) -> list[str]:
    features = f"('{root / 'oracle.flat'}',)"
    return ["DATA.FOLDER", str(root / "prepared"), "DATA.FEATURES", features, "MODEL.DEVICE", "cpu", *more]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A folder with ``prepared`` and ``oracle.flat``; the images beside it."""
    root = tmp_path_factory.mktemp("grounding")
    images = write_entities(root / "entities", {"train": 300, "val": 40, "test": 40})
    write_oracle_features(root / "oracle.flat", images)
    arguments = ["--root", str(root / "entities"), "--output", str(root / "prepared")]
    assert tool("datasets/prepare_flickr30k.py")(arguments) == 0
    return root


@pytest.fixture(scope="module")
def trained(shapes) -> Path:
    output = shapes / "run"
    settings = overrides(shapes, "OUTPUT_DIR", str(output), "SOLVER.IMS_PER_BATCH", "64", "SOLVER.EPOCHS", "5")
    assert tool("tools/train_grounding.py")(["--config-file", CONFIG, *settings]) == 0
    return output


def evaluate(shapes: Path, weights: Path, *more: str) -> dict:
    output = shapes / "scores" / "scores.json"
    arguments = ["--weights", weights, "--folder", shapes / "prepared", "--features", shapes / "oracle.flat"]
    arguments += ["--output", output, "--device", "cpu", *more]
    assert tool("tools/eval_grounding.py")([*map(str, arguments)]) == 0
    return json.loads(output.read_text())


def test_learns_to_ground(shapes, trained, capsys):
    scores = evaluate(shapes, trained / "model_best.pth")
    for protocol in ("any", "merged"):
        found = scores[protocol]
        assert found["all"]["R@1"] >= 0.9 * found["all"]["bound"] > 80
        assert found["chance"]["R@1"] < 25
        assert found["chance"]["bound"] == found["all"]["bound"]
        total = found["types"]["animals"]["phrases"] + found["types"]["other"]["phrases"]
        assert total == len(GroundingDataset.load(shapes / "prepared", "test").spans)
    said = capsys.readouterr().out
    assert "random choice" in said
    assert f"{scores['merged']['all']['R@1']:.2f}" in said


def test_the_best_is_kept_and_the_log_says_so(shapes, trained):
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    evaluations = [line for line in lines if "R@1" in line]
    assert len(evaluations) == 5
    found = evaluate(shapes, trained / "model_best.pth", "--split", "val")["any"]["all"]
    assert found["R@1"] == max(line["R@1"] for line in evaluations)
    assert found["bound"] == evaluations[0]["bound"]


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(shapes, tmp_path):
    small = ["SOLVER.EPOCH_FACTORS", "[1.0]", "DATA.TRAIN", "('val',)", "DATA.VAL", "test", "MODEL.BAN.HIDDEN_DIM", "8"]

    def run(name: str, epochs: int, resume: bool = False) -> dict:
        more = ["OUTPUT_DIR", str(tmp_path / name), "SOLVER.EPOCHS", str(epochs), *small]
        train_grounding(load_cfg(CONFIG, overrides(shapes, *more)), resume)
        return torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]

    whole = run("whole", 2)
    run("parts", 1)
    parts = run("parts", 2, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_sentence(shapes, trained):
    """The phrases of a sentence about a new image are found where the things are."""
    grounding = load_grounding(trained / "model_best.pth")
    images = write_entities(shapes / "new", {"train": 30, "val": 0, "test": 0}, seed=9)["train"]
    right = total = 0
    for image in images:
        regions = oracle_regions(image, np.random.default_rng(image.image_id))
        scene = image.scene
        things = [thing for thing in scene.things if thing.color != "gray" and len(scene.find(thing.shape)) == 1]
        if len(things) < 2:
            continue
        first, second = things[:2]
        sentence = f"A {first.color} {first.shape} is left of a {second.shape}."
        found = ground_phrases(grounding, regions, sentence)
        assert [phrase.text for phrase in found] == [f"a {first.color} {first.shape}", f"a {second.shape}"]
        assert (found[0].start, found[0].end) == (0, 3)
        for phrase, thing in zip(found, (first, second)):
            assert phrase.scores.shape == (len(regions),)
            assert phrase.region == phrase.scores.argmax()
            assert (phrase.box == regions.boxes[phrase.region]).all()
            true = scene.clipped_box(scene.things.index(thing))
            right += np.abs(phrase.box - true).max() < 15
            total += 1
    assert total > 20
    assert right > 0.8 * total


def test_what_cannot_be_grounded(shapes, trained, caplog):
    grounding = load_grounding(trained / "model_best.pth")
    image = write_entities(shapes / "one", {"train": 1, "val": 0, "test": 0})["train"][0]
    regions = oracle_regions(image, np.random.default_rng(0))
    ground_phrases(grounding, regions, "[a zeppelin] is left of [a star]")
    assert "does not know zeppelin" in caplog.text
    with pytest.raises(InputError, match="no phrase in it"):
        ground_phrases(grounding, regions, "is left of")
    regions.features = regions.features[:, :5]
    with pytest.raises(InputError, match="the feature dimension is 5, but"):
        ground_phrases(grounding, regions, "a star")
    regions.features, regions.boxes = regions.features[:0], regions.boxes[:0]
    with pytest.raises(InputError, match="no regions"):
        ground_phrases(grounding, regions, "a star")


def authors_checkpoint(path: Path, model: BANGrounding) -> Path:
    """As ban-vqa's program saves it."""
    names = {
        "embedding.words": "w_emb.emb",
        "gru": "q_emb.rnn",
        "attention.image.linear": "v_att.logits.v_net.main.1",
        "attention.words.linear": "v_att.logits.q_net.main.1",
    }
    state = {}
    for name, value in model.state_dict().items():
        parent, _, part = name.rpartition(".")
        if parent == "attention.forms":
            shape = {"weight_v": (1, 1, 1, -1), "weight_g": (), "bias": (1, 1, 1, 1)}[part]
            renamed = {"weight_v": "h_mat_v", "weight_g": "h_mat_g", "bias": "h_bias"}[part]
            state[f"module.v_att.logits.{renamed}"] = value.reshape(shape)
        else:
            state[f"module.{names[parent]}.{part}"] = value
    torch.save({"epoch": 5, "model_state": state, "optimizer_state": {}}, path)
    return path


def test_a_checkpoint_of_ban_vqa(shapes, trained, tmp_path):
    """It gives the same scores as it is, and converted, with the vocabulary that a prepared folder has."""
    grounding = load_grounding(trained / "model_best.pth")
    source = authors_checkpoint(tmp_path / "model_epoch5.pth", grounding.model)
    scores = evaluate(shapes, source)
    assert scores == evaluate(shapes, trained / "model_best.pth")
    assert tool("tools/convert_checkpoint.py")([str(source), str(tmp_path / "ban.pth"), "--to", "bua"]) == 0
    assert evaluate(shapes, tmp_path / "ban.pth") == scores


def test_checkpoints_that_cannot_be_used(shapes, trained, tmp_path):
    def assert_error(path: Path, message: str, **arguments):
        with pytest.raises(InputError, match=message) as error:
            load_grounding(path, **arguments)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    model = load_grounding(trained / "model_best.pth").model
    source = authors_checkpoint(tmp_path / "authors.pth", model)
    assert_error(source, "lacks config, vocabulary, phrase_tags, feature_dim; also name a folder")
    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    assert_error(tmp_path / "detector.pth", "not a model for grounding")
    torch.save({"model": model.state_dict() | {"classifier.answers.linear.bias": torch.zeros(3)}}, tmp_path / "vqa.pth")
    assert_error(tmp_path / "vqa.pth", "not a model for grounding", folder=shapes / "prepared")
    other = authors_checkpoint(tmp_path / "other.pth", BANGrounding(7, feature_dim=5, hidden_dim=4))
    assert_error(other, "do not fit", folder=shapes / "prepared")
    saved = read_checkpoint(trained / "model_best.pth")
    save_checkpoint(tmp_path / "tags.pth", **{**saved, "phrase_tags": saved["phrase_tags"][:3]})
    assert_error(tmp_path / "tags.pth", "phrase_tags are not B, I or O for each of the")


def test_settings_that_cannot_be_used(shapes, capsys):
    main = tool("tools/train_grounding.py")
    for settings, message in (
        (["DATA.FOLDER", "''"], "DATA.FOLDER: empty"),
        (["DATA.FEATURES", "()"], "DATA.FEATURES: empty"),
        (["DATA.VAL", "dev"], "no such split"),
        (["MODEL.BAN.HIDEN_DIM", "3"], "did you mean MODEL.BAN.HIDDEN_DIM?"),
        (["DATA.GLOVE", "True"], "prepare it with bua prepare-flickr30k --glove"),
        (["MODEL.DEVICE", "gpu"], "not a device"),
    ):
        assert main(["--config-file", CONFIG, *overrides(shapes), *settings]) == 2
        assert message in capsys.readouterr().err


def test_word_vectors_to_begin_with(shapes, tmp_path):
    vocabulary = GroundingDataset.load(shapes / "prepared", "train").vocabulary
    (tmp_path / "glove.txt").write_text(" ".join(["red", *["0.5"] * 64]) + "\n")
    prepare_flickr30k(shapes / "entities", tmp_path / "prepared", glove=tmp_path / "glove.txt", glove_dim=64)
    settings = ["DATA.FOLDER", str(tmp_path / "prepared"), "DATA.GLOVE", "True", "OUTPUT_DIR", str(tmp_path / "run")]
    settings += ["SOLVER.EPOCHS", "1", "SOLVER.BASE_LR", "0.0", "DATA.VAL", "''", "DATA.TRAIN", "('val',)"]
    train_grounding(load_cfg(CONFIG, overrides(shapes, *settings)))
    words = load_grounding(tmp_path / "run" / "model_final.pth").model.embedding.words.weight
    assert (words[vocabulary.id_of("red")] == 0.5).all()
    assert words.count_nonzero() == 64
    with pytest.raises(
        InputError, match=r"prepared: the word vectors have 64 dimensions, but EMBEDDING_DIM is 32; set it to 64"
    ):
        train_grounding(load_cfg(CONFIG, overrides(shapes, *settings, "MODEL.BAN.EMBEDDING_DIM", "32")))


def test_the_configuration_of_ban_vqa():
    cfg = load_cfg(str(ROOT / "configs" / "grounding" / "ban.yaml"))
    assert (cfg.MODEL.BAN.HIDDEN_DIM, cfg.MODEL.BAN.EMBEDDING_DIM, cfg.MODEL.BAN.RANK) == (1280, 300, 3)
    rates = [cfg.SOLVER.BASE_LR * factor for factor in cfg.SOLVER.EPOCH_FACTORS]
    assert rates == pytest.approx([5e-4, 1e-3, 1.5e-3, *[2e-3] * 7, 5e-4, 5e-4, 1.25e-4])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == (13, 256, 0.25)
