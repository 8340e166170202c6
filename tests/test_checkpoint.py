import os

import pytest
import torch
from torch import nn

from bua.checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from bua.errors import InputError


def make_model(classes=4, attributes=3) -> nn.Module:
    predictor = nn.ModuleDict({"cls_score": nn.Linear(2, classes + 1), "bbox_pred": nn.Linear(2, 4 * classes)})
    model = nn.ModuleDict({"box_predictor": predictor, "conv": nn.Conv2d(3, 2, 1)})
    model["cls_embedding"] = nn.Embedding(classes + 1, 2)
    model["attr_score"] = nn.Linear(2, attributes)
    return model


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    path = tmp_path / "model.pth"
    save_checkpoint(path, model=model.state_dict(), iteration=3)
    return model, path


def assert_same_weights(a: dict, b: dict):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_saved_is_loaded(saved):
    model, path = saved
    assert_same_weights(load_checkpoint(path), model.state_dict())
    assert read_checkpoint(path)["iteration"] == 3
    other = make_model()
    assert load_weights(other, path) == ([], [], [])
    assert_same_weights(other.state_dict(), model.state_dict())


def test_a_bare_state_dict_is_loaded(tmp_path):
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert_same_weights(load_checkpoint(tmp_path / "bare.pth"), model.state_dict())


def test_a_failed_save_leaves_the_old_file(saved):
    model, path = saved
    with pytest.raises(AttributeError):
        save_checkpoint(path, model=model.state_dict(), extra=lambda: None)
    assert_same_weights(load_checkpoint(path), model.state_dict())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    _, path = saved
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"model\.pth: is not a checkpoint, or is truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02.", bytes(range(256)) * 8, b'{"model": 1}'])
def test_files_with_other_content_are_refused(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.pth: is not a checkpoint"):
        load_checkpoint(path)


def test_pickled_code_is_not_executed(tmp_path):
    torch.save({"model": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "code.pth")


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": 3}, {"iteration": 3}])
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(InputError, match="holds no weights"):
        load_checkpoint(tmp_path / "empty.pth")


def test_a_file_that_does_not_hold_a_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")


def test_a_missing_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(InputError, match=r"pipe\.pth: is not a regular file"):
        load_checkpoint(tmp_path / "pipe.pth")
    with pytest.raises(InputError, match=r"none\.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"s3://bucket/a\.pth'?: bua cannot download from this address"):
        load_checkpoint("s3://bucket/a.pth")


@pytest.mark.parametrize(
    ("model", "name", "shapes", "advice"),
    [
        (make_model(classes=6), "box_predictor.cls_score.weight", ((5, 2), (7, 2)), "MODEL.ROI_HEADS.NUM_CLASSES to 4"),
        (
            make_model(attributes=5),
            "attr_score.weight",
            ((3, 2), (5, 2)),
            "NUM_CLASSES to 2, or to 3 with MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS False",
        ),
    ],
)
def test_a_vocabulary_of_another_size_is_named(saved, model, name, shapes, advice):
    _, path = saved
    with pytest.raises(InputError) as error:
        load_weights(model, path)
    message = str(error.value)
    assert message.startswith(f"{path}: {name} has the shape {shapes[0]}, and in the model {shapes[1]}")
    assert advice in message
    assert "\n" not in message


def test_a_parameter_of_another_shape_is_named(saved):
    _, path = saved
    model = make_model()
    model["conv"] = nn.Conv2d(3, 2, 3)
    with pytest.raises(InputError, match=r"conv\.weight has the shape \(2, 3, 1, 1\).*use the configuration"):
        load_weights(model, path)


def test_missing_parameters_are_an_error_unless_allowed(saved):
    source, path = saved
    model = make_model(classes=6)
    model["extra"] = nn.Linear(2, 2)
    del model["conv"]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, path, allow_missing=True)
    assert report.missing == ["extra.weight", "extra.bias"]
    assert report.unexpected == ["conv.weight", "conv.bias"]
    assert report.reshaped[:2] == ["box_predictor.cls_score.weight", "box_predictor.cls_score.bias"]
    for name, value in model.state_dict().items():
        kept = name in report.missing or name in report.reshaped
        assert torch.equal(value, start[name] if kept else source.state_dict()[name])

    complete = make_model()
    complete["extra"] = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"lacks 2 of the model's \d+ parameters: extra\.weight, extra\.bias"):
        load_weights(complete, path)


def test_weights_of_another_model(saved):
    _, path = saved
    with pytest.raises(InputError, match="none of its 9 parameters fits"):
        load_weights(nn.Linear(2, 2), path, allow_missing=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(saved, value):
    model, path = saved
    weights = model.state_dict()
    weights["cls_embedding.weight"][1, 1] = value
    weights["conv.weight"][0, 0] = value
    save_checkpoint(path, model=weights)
    with pytest.raises(InputError, match=r"model\.pth: conv\.weight has values that are NaN or infinite.*; give"):
        load_weights(make_model(), path)


def test_weights_whose_sum_overflows_are_loaded(tmp_path):
    save_checkpoint(tmp_path / "half.pth", model={"a": torch.full((2, 8), 30000.0, dtype=torch.float16)})
    assert load_checkpoint(tmp_path / "half.pth")["a"].isfinite().all()
