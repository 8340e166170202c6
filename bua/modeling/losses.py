"""The losses of the detector, as functions on tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1_loss(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Returns the sum over all elements of the smooth L1 loss: quadratic below ``beta``, linear above. It is the L1
    loss if ``beta`` is 0.

    The original's "sigma" is ``beta ** -0.5`` (lib/rpn, smooth_l1_loss_layer.cu).
    """
    if beta == 0:
        return F.l1_loss(prediction, target, reduction="sum")
    return F.smooth_l1_loss(prediction, target, reduction="sum", beta=beta)


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
        attributes = attributes.clone()
        attributes[(attributes < 0).all(dim=1), 0] = no_attribute
    valid = attributes >= 0
    count = valid.sum(dim=1)
    log_probs = F.log_softmax(logits.float(), dim=1).gather(1, attributes.clamp(min=0))
    per_region = -(log_probs * valid).sum(dim=1) / count.clamp(min=1)
    return per_region.sum() / (count > 0).sum().clamp(min=1)


def box_regression_loss(deltas: Tensor, classes: Tensor, targets: Tensor, num_classes: int, beta: float) -> Tensor:
    """Returns the sum of the smooth L1 losses of the foreground regions, each at the deltas of its own class.

    Args:
        deltas: [N, num_classes * 4].
        classes: [N] int64. ``num_classes`` stands for background.
        targets: [N, 4].
    """
    foreground = torch.nonzero(classes < num_classes).squeeze(1)
    own = deltas.unflatten(1, (num_classes, 4))[foreground, classes[foreground]]
    return smooth_l1_loss(own, targets[foreground], beta)
