"""The losses of the detector, as functions on tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1_loss(prediction: Tensor, target: Tensor, beta: float, weight: Tensor | None = None) -> Tensor:
    """Returns the sum over all elements of the smooth L1 loss: quadratic below ``beta``, linear above. It is the L1
    loss if ``beta`` is 0.

    The original's "sigma" is ``beta ** -0.5`` (lib/rpn, smooth_l1_loss_layer.cu).

    Args:
        prediction, target: [..., 4] or any other shape.
        weight: Factor of each element, of a shape that broadcasts to theirs, such as 0 where there is no target. By
            default it is 1.
    """
    if weight is None:
        return F.smooth_l1_loss(prediction, target, reduction="sum", beta=beta)
    return (F.smooth_l1_loss(prediction, target, reduction="none", beta=beta) * weight).sum()


def attribute_loss(logits: Tensor, attributes: Tensor, no_attribute: int | None) -> Tensor:
    """Returns the softmax cross-entropy against a uniform target over the attributes of each region.

    The loss of a region is the mean of -log p over its attributes. The result is the mean over the regions that have a
    label, and 0 if none has (the original's SoftmaxWithLoss over 16 label columns, train.prototxt "loss_attribute").

    Args:
        logits: [N, K].
        attributes: [N, M] int64, counted from 0, padded with -1.
        no_attribute: The class that regions without attributes are trained on. None leaves these regions out.
    """
    if no_attribute is not None:
        first = attributes[:, :1].masked_fill((attributes < 0).all(dim=1, keepdim=True), no_attribute)
        attributes = torch.cat([first, attributes[:, 1:]], dim=1)
    valid = attributes >= 0
    count = valid.sum(dim=1)
    log_probs = F.log_softmax(logits.float(), dim=1).gather(1, attributes.clamp(min=0))
    per_region = -(log_probs * valid).sum(dim=1) / count.clamp(min=1)
    return per_region.sum() / (count > 0).sum().clamp(min=1)


def box_regression_loss(deltas: Tensor, classes: Tensor, targets: Tensor, num_classes: int, beta: float) -> Tensor:
    """Returns the sum of the smooth L1 losses of foreground regions, each at the deltas of its own class.

    Args:
        deltas: [F, num_classes * 4].
        classes: [F] int64, less than ``num_classes``.
        targets: [F, 4].
    """
    own = classes[:, None, None].expand(-1, 1, 4)
    return smooth_l1_loss(deltas.unflatten(1, (num_classes, 4)).gather(1, own).squeeze(1), targets, beta)
