"""The checkpoints of the authors' question answering models, as their programs save them, become bua's."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from script_loading import load_script
from test_authors_vocabularies import write_authors_folder

from bua.errors import InputError
from bua.grounding.released import RELEASED_MODELS as GROUNDING_MODELS
from bua.structures import Regions
from bua.tasks.released import constructor_arguments, read_released_checkpoint
from bua.tasks.words import WordVocabulary
from bua.vqa import BAN, UpDown
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.inference import answer_question, load_vqa
from bua.vqa.released import RELEASED_MODELS as VQA_MODELS
from bua.weights.files import read_weights

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"num_words": 9, "num_answers": 5, "feature_dim": 7, "embedding_dim": 3, "hidden_dim": 4}


@pytest.fixture(scope="module")
def main():
    return load_script("tools/convert_checkpoint.py").main


def read_released(path: Path):
    return read_released_checkpoint(path, (*VQA_MODELS, *GROUNDING_MODELS))


def random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand_like(value) for name, value in model.state_dict().items()}


def authors_names(weights: dict) -> dict[str, torch.Tensor]:
    """Weights of bua's models as the authors' programs name and shape them, without DataParallel's prefix."""
    ban = "attention.forms.bias" in weights
    linear = "main.1" if ban else "main.0"
    names = {
        "embedding.words": "w_emb.emb",
        "embedding.second": "w_emb.emb_",
        "gru": "q_emb.rnn",
        "attention.image.linear": f"v_att.logits.v_net.{linear}" if ban else f"v_att.v_proj.{linear}",
        "attention.words.linear": f"v_att.logits.q_net.{linear}",
        "attention.question.linear": f"v_att.q_proj.{linear}",
        "attention.joint.linear": "v_att.nonlinear.main.0",
        "attention.score": "v_att.linear",
        "image.linear": f"v_net.{linear}",
        "question.linear": f"q_net.{linear}",
        "classifier.hidden.linear": "classifier.main.0",
        "classifier.answers.linear": "classifier.main.3",
    }
    glimpse = {"image": ("b_net", "v_net.main.1"), "words": ("b_net", "q_net.main.1")}
    glimpse |= {"residual": ("q_prj", "main.1"), "count": ("c_prj", "main.0")}
    renamed = {}
    for name, value in weights.items():
        parent, _, part = name.rpartition(".")
        if parent == "attention.forms":
            target = {"weight_v": "h_mat_v", "weight_g": "h_mat_g", "bias": "h_bias"}[part]
            shape = {"weight_v": (1, len(value), 1, -1) if value.dim() else (), "weight_g": (), "bias": (1, -1, 1, 1)}
            renamed[f"v_att.logits.{target}"] = value.reshape(shape[part])
        elif parent == "counter":
            renamed |= {f"counter.f.{i}.weight": row for i, row in enumerate(value)}
        elif found := re.fullmatch(r"glimpses\.(\d+)\.(\w+)\.linear", parent):
            module, layer = glimpse[found[2]]
            renamed[f"{module}.{found[1]}.{layer}.{part}"] = value
        else:
            renamed[f"{names[parent]}.{part}"] = value
    return renamed


def in_parallel(weights: dict) -> dict:
    return {f"module.{name}": value for name, value in weights.items()}


def without(weights: dict, missing: str) -> dict:
    return {name: value for name, value in weights.items() if name != missing}


def save_ban(path: Path, weights: dict) -> Path:
    """As ban-vqa's utils.py, with the state of an optimiser."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adamax([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = {"epoch": 12, "model_state": in_parallel(weights), "optimizer_state": optimizer.state_dict()}
    torch.save(state, path)
    return path


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("arguments", [{}, {"attention": "concatenation"}])
def test_updown(tmp_path, arguments):
    weights = random_weights(UpDown(**SIZES, **arguments))
    torch.save(in_parallel(authors_names(weights)), tmp_path / "model.pth")
    layout, found = read_released(tmp_path / "model.pth")
    assert layout.name == "updown-vqa"
    assert_same(found, weights)
    assert constructor_arguments(found) == SIZES | arguments


@pytest.mark.parametrize("arguments", [{}, {"second_embedding": False, "glimpses": 2, "rank": 2}])
def test_ban(tmp_path, arguments):
    weights = random_weights(BAN(**SIZES, **arguments))
    # Older versions of PyTorch saved the length of a matrix as a tensor of one element.
    names = {name: value.reshape(1) if value.dim() == 0 else value for name, value in authors_names(weights).items()}
    layout, found = read_released(save_ban(tmp_path / "model_epoch12.pth", names))
    assert layout.name == "ban-vqa"
    assert_same(found, weights)
    everything = {"glimpses": 8, "rank": 3, "second_embedding": True, "counted_objects": 10} | arguments
    assert constructor_arguments(found) == SIZES | everything


def test_names_of_the_authors_checkpoints(shared_data):
    """``authors_names`` gives every name and shape of the authors' checkpoints, and no other."""
    for name in ("updown_vqa", "ban_vqa", "ban_grounding"):
        path = shared_data / "golden" / "vqa" / f"{name}.pth"
        layout, weights = read_released(path)
        assert layout.name == {"ban_grounding": "ban-flickr"}.get(name, name.replace("_", "-"))
        assert_same(authors_names(weights), torch.load(path, weights_only=True))


def test_grounding():
    """A grounding model's weights are those of BAN up to its attention."""
    weights = random_weights(BAN(**SIZES, glimpses=1, second_embedding=False))
    parts = ("embedding.", "gru.", "attention.")
    arguments = constructor_arguments({name: value for name, value in weights.items() if name.startswith(parts)})
    assert arguments == {name: SIZES[name] for name in SIZES if name != "num_answers"} | {"rank": 3}


def test_the_tool(main, tmp_path, capsys):
    weights = random_weights(BAN(**SIZES))
    source = save_ban(tmp_path / "model_epoch12.pth", authors_names(weights))
    target = tmp_path / "ban.pth"
    assert main([str(source), str(target), "--to", "huggingface"]) == 2
    assert "--to huggingface: is only for detectors" in capsys.readouterr().err
    assert main([str(source), str(target), "--to", "bua"]) == 0
    said = capsys.readouterr().out
    assert "in the layout `ban-vqa` (jnhwkim/ban-vqa)" in said
    assert "glimpses=8" in said
    model = BAN(**SIZES)
    model.load_state_dict(read_weights(target))
    assert_same(model.state_dict(), weights)


@pytest.mark.parametrize("pickles", [False, True], ids=["folder", "pickles"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [(UpDown, {}), (UpDown, {"attention": "concatenation"}), (BAN, {"glimpses": 2, "counted_objects": 3})],
    ids=["updown", "baseline0", "ban"],
)
def test_with_its_vocabularies_a_model_answers(main, tmp_path, capsys, kind, more, pickles):
    def write_vocabularies(words: int, answers: int):
        texts = [f"word{i}" for i in range(words)], [f"answer{i}" for i in range(answers)]
        if pickles:
            write_authors_folder(tmp_path, *texts, protocol=2)
            return
        WordVocabulary(texts[0]).save(tmp_path / "question_vocabulary.json")
        AnswerVocabulary(texts[1]).save(tmp_path / "answer_vocabulary.json")
        (tmp_path / "vqa.json").write_text("{}")

    model = kind(**SIZES, **more)
    model.load_state_dict(random_weights(model))
    weights = authors_names(model.state_dict())
    if kind is BAN:
        source = save_ban(tmp_path / "model_epoch12.pth", weights)
    else:
        source = tmp_path / "model.pth"
        torch.save(weights, source)
    option = "--vocabulary" if pickles else "--vqa-folder"
    command = [str(source), str(tmp_path / "model_of_bua.pth"), "--to", "bua", option, str(tmp_path)]
    for sizes, message in (((8, 5), "has 8 words, the model 9"), ((9, 6), "has 6 answers, the model 5")):
        write_vocabularies(*sizes)
        assert main(command) == 2
        assert message in capsys.readouterr().err
    write_vocabularies(9, 5)
    assert main([*command, "--vqa-folder" if pickles else "--vocabulary", str(tmp_path)]) == 2
    assert "--vqa-folder and --vocabulary: both name vocabularies" in capsys.readouterr().err
    assert main(command) == 0
    vqa = load_vqa(tmp_path / "model_of_bua.pth")
    assert_same(vqa.model.state_dict(), model.state_dict())
    regions = Regions(1, 10, 10, np.array([[0, 0, 5, 5], [1, 2, 9, 8]], np.float32), np.ones((2, 7), np.float32))
    answers, attention = answer_question(vqa, regions, "word3 word8?")
    assert {answer.text for answer in answers} == {f"answer{i}" for i in range(5)}
    assert attention.sum() == pytest.approx(1)


def test_a_checkpoint_of_no_known_model(tmp_path):
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    assert read_released(tmp_path / "detector.pth") is None


def test_what_cannot_be_used(tmp_path):
    def assert_error(message, weights):
        path = tmp_path / "model.pth"
        torch.save(weights, path)
        with pytest.raises(InputError) as error:
            read_released(path)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    updown, ban = authors_names(random_weights(UpDown(**SIZES))), authors_names(random_weights(BAN(**SIZES)))
    wrong_part = {"v_att.nonlinear.main.0.weight_v": torch.zeros(4, 11)}
    assert_error("attention.joint.linear.weight_g is missing", updown | wrong_part)
    assert_error("is of type int, not weights", {"model_state": 3})
    incomplete = "the weights are incomplete (hengyuan-hu/bottom-up-attention-vqa): question.linear.bias is missing"
    assert_error(incomplete, without(updown, "q_net.main.0.bias"))
    for missing in ("counter.f.3.weight", "q_emb.rnn.weight_hh_l0", "b_net.1.v_net.main.1.bias", "v_att.logits.h_bias"):
        assert_error("is missing", {"model_state": without(ban, missing)})
    assert_error("the weights are damaged (", updown | {"q_net.main.0.bias": torch.zeros(3)})
    assert_error("the weights are damaged (", {"model_state": ban | {"w_emb.emb.weight": torch.zeros(3)}})
