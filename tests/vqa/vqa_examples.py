"""Small models and inputs, and slow reference implementations of both models for one image, in loops."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from bua.tasks.released import constructor_arguments, read_released_checkpoint
from bua.vqa import BAN
from bua.vqa.released import RELEASED_MODELS

WORDS, ANSWERS, FEATURES, LENGTH = 20, 6, 16, 5
SIZES = {"feature_dim": FEATURES, "embedding_dim": 6, "hidden_dim": 8}


def small(kind: type, **arguments) -> nn.Module:
    """Returns a small UpDown or BAN, always with the same weights. All weights affect the output."""
    torch.manual_seed(7)
    model = kind(WORDS, ANSWERS, **SIZES | ({"glimpses": 3} if kind is BAN else {}) | arguments)
    for name, value in model.named_parameters():
        if name.endswith("weight_g"):
            value.detach().mul_(1.5)
        elif name == "counter.weight":
            nn.init.uniform_(value.detach()[:, 1:], 0.5, 2)
    return model


def inputs(boxes_in_image: list[int], *, room: int = 0, words: int = 3, seed: int = 0) -> SimpleNamespace:
    """Returns a batch of images with the given numbers of boxes.

    There are ``room`` more rows than the image with the most boxes has. The padding has random values, not zeros.
    Questions have ``words`` words, and padding at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, rows = len(boxes_in_image), max(boxes_in_image) + room
    mask = torch.arange(rows) < torch.tensor(boxes_in_image).unsqueeze(1)
    question = torch.full((batch, LENGTH), WORDS)
    question[:, :words] = torch.randint(WORDS, (batch, words), generator=generator)
    corners = torch.rand(batch, rows, 2, 2, generator=generator).sort(dim=2).values.flatten(2)
    sides = corners[..., 2:] - corners[..., :2]
    return SimpleNamespace(
        features=torch.randn(batch, rows, FEATURES, generator=generator),
        boxes=torch.cat([corners, sides], dim=2),
        mask=mask,
        question=question,
    )


def run(model: nn.Module, batch: SimpleNamespace):
    return model(batch.features, batch.boxes, batch.mask, batch.question)


def golden(kind: type, folder: Path, name: str) -> tuple[nn.Module, SimpleNamespace]:
    """Returns a model with the weights of a checkpoint of the authors' code, and the inputs and outputs of that code as
    tensors by name."""
    _, weights = read_released_checkpoint(folder / f"{name}.pth", RELEASED_MODELS)
    model = kind(**constructor_arguments(weights)).eval()
    model.load_state_dict(weights)
    with np.load(folder / f"{name}.npz") as arrays:
        return model, SimpleNamespace(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})


def linear(weights: dict, name: str, x: np.ndarray) -> np.ndarray:
    """Applies a linear layer with or without weight normalisation to a vector."""
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]
    direction = weights[f"{name}.weight_v"]
    length = np.sqrt((direction**2).sum())
    return weights[f"{name}.weight_g"] * (direction / length) @ x + weights[f"{name}.bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def gru_states(weights: dict, question: list[int]) -> list[np.ndarray]:
    """Returns the state after each word, by the equations of PyTorch's documentation."""
    hidden = weights["gru.weight_hh_l0"].shape[1]
    state, states = np.zeros(hidden), []
    for word in question:
        vector = weights["embedding.words.weight"][word]
        if "embedding.second.weight" in weights:
            vector = np.concatenate([vector, weights["embedding.second.weight"][word]])
        from_input = weights["gru.weight_ih_l0"] @ vector + weights["gru.bias_ih_l0"]
        from_state = weights["gru.weight_hh_l0"] @ state + weights["gru.bias_hh_l0"]
        reset, update = (
            1 / (1 + np.exp(-from_input[part] - from_state[part]))
            for part in (slice(0, hidden), slice(hidden, 2 * hidden))
        )
        new = np.tanh(from_input[2 * hidden :] + reset * from_state[2 * hidden :])
        state = (1 - update) * new + update * state
        states.append(state)
    return states


def double_weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def project(weights: dict, name: str, x: np.ndarray, activation: str) -> np.ndarray:
    """Applies a ``Projection`` to a vector."""
    projected = linear(weights, f"{name}.linear", x)
    if activation == "relu":
        return relu(projected)
    gate = 1 / (1 + np.exp(-linear(weights, f"{name}.gate", x)))
    return gate * {"glu": projected, "gated_tanh": np.tanh(projected)}[activation]


def slow_updown(weights: dict, features: np.ndarray, question: list[int], activation: str = "relu"):
    """Logits and attention of one image, features [n, D], box by box."""
    vector = gru_states(weights, question)[-1]
    scores = []
    for feature in features:
        if "attention.joint.linear.bias" in weights:
            both = project(weights, "attention.joint", np.concatenate([feature, vector]), activation)
        else:
            asked = project(weights, "attention.question", vector, activation)
            both = asked * project(weights, "attention.image", feature, activation)
        scores.append(linear(weights, "attention.score", both)[0])
    attention = softmax(np.array(scores))
    attended = sum(share * feature for share, feature in zip(attention, features))
    joint = project(weights, "question", vector, activation) * project(weights, "image", attended, activation)
    if "classifier.text_answers.linear.bias" in weights:
        streams = [
            linear(
                weights,
                f"classifier.{stream}_answers.linear",
                project(weights, f"classifier.{stream}", joint, activation),
            )
            for stream in ("text", "image")
        ]
        return sum(streams), attention
    return linear(
        weights, "classifier.answers.linear", project(weights, "classifier.hidden", joint, activation)
    ), attention


def slow_ban(weights: dict, features: np.ndarray, boxes: np.ndarray, question: list[int], count=None):
    """Logits and attention [G, n, L] of one image, pair by pair; ``count`` of (boxes, logits [n]) is the counter."""
    states = gru_states(weights, question)
    forms = weights["attention.forms.weight_v"]
    forms = weights["attention.forms.weight_g"] * forms / np.sqrt((forms**2).sum())
    logits = np.zeros((len(forms), len(features), len(states)))
    for g, form in enumerate(forms):
        for i, feature in enumerate(features):
            for j, state in enumerate(states):
                image = relu(linear(weights, "attention.image.linear", feature))
                word = relu(linear(weights, "attention.words.linear", state))
                logits[g, i, j] = (form * image * word).sum() + weights["attention.forms.bias"][g]
    attention = np.stack([softmax(glimpse.ravel()).reshape(glimpse.shape) for glimpse in logits])
    for g in range(len(forms)):
        joint = 0
        for i, feature in enumerate(features):
            for j, state in enumerate(states):
                image = relu(linear(weights, f"glimpses.{g}.image.linear", feature))
                word = relu(linear(weights, f"glimpses.{g}.words.linear", state))
                joint = joint + attention[g, i, j] * image * word
        found = linear(weights, f"glimpses.{g}.residual.linear", joint)
        if count is not None:
            found = found + relu(linear(weights, f"glimpses.{g}.count.linear", count(boxes, logits[g].max(axis=1))))
        states = [state + found for state in states]
    hidden = relu(linear(weights, "classifier.hidden.linear", sum(states)))
    return linear(weights, "classifier.answers.linear", hidden), attention


def slow_count(weight: np.ndarray, boxes: np.ndarray, logits: np.ndarray, objects: int) -> np.ndarray:
    """The paper's section 4, an edge at a time, for one image: boxes [n, 4], logits [n]."""

    def f(i, x):
        rises = np.abs(weight[i]) / np.abs(weight[i]).sum()
        return np.interp(x, np.linspace(0, 1, 17), np.cumsum(rises))

    def iou(a, b):
        width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
        height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return width * height / (areas - width * height + 1e-12)

    best = np.argsort(-logits)[:objects]
    attention = [1 / (1 + math.exp(-logits[i])) for i in best] + [0.0] * (objects - len(best))
    kept = [boxes[i] for i in best] + [np.zeros(4)] * (objects - len(best))
    k = range(objects)
    distance = [[1 - iou(kept[i], kept[j]) for j in k] for i in k]
    edges = [[f(3, attention[i] * attention[j]) * f(4, distance[i][j]) for j in k] for i in k]

    def similarity(i, j):
        result = f(2, 1 - abs(attention[i] - attention[j]))
        for other in k:
            result *= f(2, 1 - abs(edges[i][other] - edges[j][other]))
        return result

    copies = [sum(similarity(i, j) for j in k) for i in k]
    total = sum(f(0, attention[i] ** 2) / copies[i] for i in k)
    for i in k:
        for j in k:
            total += f(0, attention[i] * attention[j]) * f(1, distance[i][j]) / (copies[i] * copies[j])
    number = min(math.sqrt(total), objects)
    doubt = np.mean([abs(f(5, a) - 0.5) for a in attention])
    doubt += np.mean([abs(f(6, distance[i][j]) - 0.5) for i in k for j in k])
    one_hot = np.zeros(objects + 2)
    one_hot[int(number)] = 1 - number % 1
    one_hot[int(number) + 1] = number % 1
    return one_hot[: objects + 1] * f(7, doubt)
