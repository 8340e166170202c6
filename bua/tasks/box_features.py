"""Where regions are, as numbers that are joined to their features, for models that would not know it otherwise."""

import torch
from torch import Tensor

# How many numbers ``join_boxes`` adds to a region's features, by ``sides``.
BOX_NUMBERS = {False: 5, True: 7}


def join_boxes(features: Tensor, boxes: Tensor, *, sides: bool) -> Tensor:
    """Returns features [..., D + 5] or [..., D + 7] float32: those given, then the numbers of each region's box.

    The numbers are the corners x1, y1, x2, y2, then width and height if ``sides`` is set, then the area.

    Args:
        features: [..., D] float32 or float16.
        boxes: [..., 4] float32 x1y1x2y2 in fractions of the image's width and height.
        sides: Whether width and height are among the numbers, as in UNITER and the models after it. ruotianluo's
            captioner (``use_box``) does not have them.
    """
    lengths = boxes[..., 2:] - boxes[..., :2]
    numbers = [boxes, *([lengths] if sides else []), lengths.prod(dim=-1, keepdim=True)]
    return torch.cat([features, *numbers], dim=-1)
