"""Training for a score of whole captions: those that score above a baseline become likelier (Rennie et al. 2017)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bua.captioning.decoding import MAX_LENGTH, Captions, Constraints, beam_search, greedy, sample
from bua.captioning.updown import caption_loss

METHODS = ("beam", "greedy", "leave_one_out")


def self_critical_loss(
    model: nn.Module,
    features: Tensor,
    mask: Tensor,
    image_ids: Sequence[int | str],
    reward: Callable[[list[list[int]], list[int | str]], np.ndarray],
    *,
    method: str = "beam",
    samples: int = 5,
    max_length: int = MAX_LENGTH,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    end_in_reward: bool = False,
    scale: float = 20.0,
) -> dict[str, Tensor]:
    """What ``bua.engine.Trainer`` minimises: minus the mean reward of captions that the model makes itself.

    The model captions the images without gradient and in evaluation mode, then reads those captions once, as in
    training with cross-entropy; each caption's loss is weighted by how far its reward is above the baseline. The end
    of a caption is one of its words in that loss; ``unk`` is none.

    Args:
        model: an ``UpDownCaptioner``, or one in ``DistributedDataParallel``.
        features: [B, n, D] float32.
        mask: [B, n] bool.
        image_ids: [B].
        reward: takes N captions as lists of word ids, and the N ids of their images; gives N numbers, such as
            ``CiderD.score``.
        method: which captions, and which baseline:
            "beam", the captions of a beam search, and their mean (the original's scst_layers.py);
            "greedy", captions drawn at random, and the reward of the greedy one (the paper);
            "leave_one_out", captions drawn at random, and the mean of an image's others (Luo 2020).
        samples: captions of each image; 2 at least, but for "greedy".
        max_length, constraints: of all captions, see ``bua.captioning.decoding``. What is drawn at random should have
            no more of these than words that the model never says: the loss does not know of them.
        end_in_reward: captions that ``reward`` takes have their end as a last word; its references must have it too.
        scale: as for ``caption_loss``.

    Returns:
        "loss_reward": its value is minus the mean reward, for the log; its gradient is that of ``caption_loss`` with
        the captions' weights.

    Raises:
        ValueError: an unknown method, or too few samples.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: use one of {', '.join(METHODS)}")
    if samples < 1 + (method != "greedy"):
        raise ValueError(f"{samples} samples: {method} needs {1 + (method != 'greedy')} at least")
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    settings = {"max_length": max_length, "constraints": constraints}

    def rewards_of(captions: Captions) -> Tensor:
        words = [caption for image in captions.words(bare.special.end, end_in_reward) for caption in image]
        each = captions.tokens.shape[1]
        scores = reward(words, [image_id for image_id in image_ids for _ in range(each)])
        return torch.as_tensor(scores, dtype=torch.float32, device=features.device).view(-1, each)

    with _evaluation(bare):
        if method == "beam":
            captions = beam_search(bare, features, mask, beam=samples, **settings)
        else:
            captions = sample(bare, features, mask, samples=samples, **settings)
        rewards = rewards_of(captions)
        if method == "greedy":
            baseline = rewards_of(greedy(bare, features, mask, **settings))
        elif method == "beam":
            baseline = rewards.mean(dim=1, keepdim=True)
        else:
            baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (samples - 1)

    begin = torch.full_like(captions.tokens[:, :, :1], bare.special.begin)
    logits = model(features, mask, torch.cat([begin, captions.tokens[:, :, :-1]], dim=2))
    loss = caption_loss(
        logits, captions.tokens, captions.mask, unk=bare.special.unk, weights=rewards - baseline, scale=scale
    )
    # The weighted loss is near 0 whatever the model learns: what it is the gradient of says more.
    return {"loss_reward": loss - loss.detach() - rewards.mean()}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
