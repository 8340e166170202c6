"""Fuzzing of checkpoints: PyTorch's archives and pickles, Detectron's pickles, Caffe's models, and models of tasks."""

import functools
import io
import operator
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from cases import EXECUTED, Finding, Target, made_in_folder
from mutations import VALUES, Files, mutate_bytes, mutate_zip
from torch import Tensor

from bua.checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from bua.tasks.words import WordVocabulary
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.config import build_model, get_cfg
from bua.vqa.inference import VqaModel, load_vqa
from bua.weights.caffemodel import net_parameter

FILE = "model.pth"
STEM = "backbone.stem.conv1.weight"
# Functions that would show that a pickle was executed, with their arguments.
HOSTILE = (
    (os.mkdir, (EXECUTED,)),
    (os.system, (f"mkdir {EXECUTED}",)),
    (eval, (f"__import__('os').mkdir({EXECUTED!r})",)),
    (functools.partial(os.mkdir), (EXECUTED,)),
    (operator.methodcaller("mkdir"), (Path(EXECUTED),)),
    (torch.load, ("other.pth",)),
    (np.load, ("other.npy",)),
    (bytes, (1 << 36,)),
    (torch.zeros, ((1 << 38,),)),
    (np.zeros, (1 << 40,)),
)

TENSOR_CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda value: value * float("nan"),
    lambda value: value / 0,
    lambda value: value.reshape(-1),
    lambda value: value[:0] if value.dim() else value,
    lambda value: value.to(torch.complex64),
    lambda value: value.to(torch.int8),
    lambda value: value.to(torch.bfloat16),
    lambda value: torch.zeros(3).to_sparse(),
    lambda value: torch.tensor(1.0).expand(1 << 40),
    lambda value: torch.zeros(value.shape, device="meta"),
)


class _Hostile:
    def __init__(self, call: tuple):
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


def _weights() -> dict[str, Tensor]:
    values = torch.linspace(-1, 1, 12)
    return {
        STEM: values.reshape(2, 3, 2, 1),
        "backbone.stem.conv1.norm.running_var": values[:2].abs(),
        "backbone.stem.conv1.norm.num_batches_tracked": torch.tensor(3),
        "roi_heads.box_predictor.cls_score.weight": values.half().reshape(3, 4),
    }


def _detector_samples() -> list[Files]:
    weights = _weights()
    state = {"model": weights, "iteration": 3, "optimizer": {"state": {0: {"momentum": weights}}, "param_groups": []}}
    arrays = {name: value.numpy() for name, value in weights.items()}
    files = [
        _torch_bytes(weights),
        _torch_bytes(state),
        _torch_bytes(state, _use_new_zipfile_serialization=False),
        pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2),
        pickle.dumps({"blobs": arrays}, protocol=4),
        pickle.dumps(OrderedDict(arrays), protocol=0),
        _caffemodel(weights),
    ]
    return [{FILE: data} for data in files]


def _torch_bytes(state: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def _caffemodel(weights: dict[str, Tensor]) -> bytes:
    net = net_parameter()(name="net")
    for name, value in weights.items():
        blob = net.layer.add(name=name, type="Any").blobs.add()
        blob.data.append(value.numpy().astype("<f4").tobytes())
        blob.shape.dim.extend(value.shape)
    return net.SerializeToString()


def _task_samples() -> list[Files]:
    """A small model for questions, as training saves it."""

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        words, answers = WordVocabulary(["what", "is", "it"]), AnswerVocabulary(["yes", "no"])
        cfg = get_cfg()
        cfg.MODEL.UPDOWN.HIDDEN_DIM = cfg.MODEL.UPDOWN.EMBEDDING_DIM = 2
        model = build_model(cfg, len(words), len(answers), 3)
        save_checkpoint(folder / FILE, model=model.state_dict(), **VqaModel(model, cfg, 3, words, answers).describe())

    return [made_in_folder(write)]


def _mutate(random: Random, files: Files) -> Files:
    """Damages the file; or writes one of its kind that holds other values, or code."""
    data = files[FILE]
    what = random.random()
    is_zip, is_torch = zipfile.is_zipfile(io.BytesIO(data)), b"torch" in data
    if what < 0.25 and is_torch:
        tree = _mutate_state(random, torch.load(io.BytesIO(data), weights_only=True))
        return {FILE: _torch_bytes(tree, _use_new_zipfile_serialization=is_zip)}
    if what < 0.4:
        return {FILE: _with_code(random, data, is_zip)}
    if what < 0.65 and is_zip:
        return {FILE: mutate_zip(random, data)}
    return {FILE: mutate_bytes(random, data)}


def _can_change(value: Tensor) -> bool:
    # A tensor that was changed before may repeat one value 2^40 times.
    return not value.is_sparse and value.numel() < 1 << 24


def _mutate_state(random: Random, tree: dict) -> dict:
    """Replaces values of a state by values of other types, shapes and sizes."""
    tree = dict(tree)
    for _ in range(random.choice((1, 1, 3))):
        name = random.choice(sorted(tree, key=str)) if tree else "model"
        value = tree.get(name)
        if isinstance(value, dict) and random.random() < 0.8:
            tree[name] = _mutate_state(random, value)
        elif isinstance(value, Tensor) and _can_change(value) and random.random() < 0.7:
            tree[name] = random.choice(TENSOR_CHANGES)(value)
        elif random.random() < 0.2:
            tree[random.choice((0, None, 1.5, "", "x", ("a", "b")))] = tree.pop(name, None)
        else:
            tree[name] = random.choice(VALUES)
    return tree


def _with_code(random: Random, data: bytes, is_zip: bool) -> bytes:
    hostile: object = _Hostile(random.choice(HOSTILE))
    for _ in range(random.randrange(3)):
        hostile = random.choice(({"model": hostile}, [hostile], {"model": {"weight": hostile}}, (hostile, hostile)))
    code = pickle.dumps(hostile, protocol=random.choice((0, 2, 4)))
    if not is_zip:
        return random.choice((code, code[:-1] + data, data + code))
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with source, zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            archive.writestr(info.filename, code if info.filename.endswith("data.pkl") else source.read(info))
    return target.getvalue()


def _check_detector(sample: Files) -> str:
    read_checkpoint(FILE)
    weights = load_checkpoint(FILE)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.device.type != "cpu":
            raise Finding(f"{name!r} is {type(value).__name__}, not a tensor on the CPU")
    original = _weights()[STEM]
    if STEM not in weights:  # in Caffe's models, or because the name was damaged
        return "read"
    model = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"stem": torch.nn.ModuleDict()})})
    model["backbone"]["stem"]["conv1"] = torch.nn.Conv2d(3, 2, (2, 1), bias=False)
    load_weights(model, FILE)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Finding("loads weights that are not finite")
    same = torch.equal(model["backbone"]["stem"]["conv1"].weight.detach(), original)
    return "correct" if same else "changed"


def _check_task(sample: Files) -> str:
    vqa = load_vqa(FILE)
    if not all(parameter.isfinite().all() for parameter in vqa.model.parameters()):
        raise Finding("loads weights that are not finite")
    return "read"


TARGETS = {
    "detector-weights": Target("checkpoints", _detector_samples, _mutate, _check_detector),
    "task-model": Target("checkpoints", _task_samples, _mutate, _check_task),
}
