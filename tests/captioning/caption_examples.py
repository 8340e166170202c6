"""Small captioners and images."""

import torch
from torch import Tensor, nn

from bua.captioning import SpecialWords, UpDownCaptioner

WORDS, FEATURES = 7, 5
SIZES = {"feature_dim": FEATURES, "embedding_dim": 6, "hidden_dim": 8, "attention_dim": 4}
WORDPIECE = SpecialWords(begin=5, end=6, unk=2, pad=4)
VARIANTS = {
    "original": {},
    "gru": {"cell": "gru", "weight_norm": True, "initial_std": None, "special": WORDPIECE},
    "projected": {"projection_dim": 3, "attention_bias": True, "attention_activation": "relu"},
}


def small(seed: int = 0, **arguments) -> UpDownCaptioner:
    """A captioner, in evaluation mode, with weights that all matter."""
    torch.manual_seed(seed)
    model = UpDownCaptioner(WORDS, **SIZES | arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter.detach(), std=0.8)
    return model.eval()


def images(*boxes: int, room: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and mask of images with so many boxes, ``room`` more rows than the largest needs; padding is random
    too."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(boxes) + room
    mask = torch.arange(rows) < torch.tensor(boxes).unsqueeze(1)
    return torch.randn(len(boxes), rows, FEATURES, generator=generator), mask
