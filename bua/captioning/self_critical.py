"""Self-critical training: makes captions more probable whose reward is above a baseline (Rennie et al. 2017)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bua.captioning.decoding import MAX_LENGTH, Constraints, DecodedCaptions, beam_search, greedy, sample
from bua.captioning.updown import UpDownCaptioner, caption_loss
from bua.upload import upload

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
    """Returns the loss for training: minus the mean reward of captions that the model generates itself.

    The model generates captions in evaluation mode and without gradient, then reads these captions once, as in training
    with cross-entropy. The loss of each caption is weighted by the difference between its reward and the baseline. The
    end of a caption counts as a word in this loss, ``unk`` does not.

    Args:
        model: An ``UpDownCaptioner``, or one in ``DistributedDataParallel``.
        features: [B, n, D] float32.
        mask: [B, n] bool, false for padding.
        image_ids: [B].
        reward: A function of N captions, as lists of word ids, and the N ids of their images, that returns N rewards,
            such as ``CiderD.score``.
        method: How the captions and the baseline are computed.
            "beam": by beam search; the baseline is their mean reward (the original's scst_layers.py).
            "greedy": by sampling; the baseline is the reward of the greedy caption (the paper).
            "leave_one_out": by sampling; the baseline is the mean reward of the image's other captions (Luo 2020).
        samples: Number of captions per image; at least 2, except for "greedy".
        max_length, constraints: Limits of the generated captions, see ``bua.captioning.decoding``. Samples should have
            no other constraints than ``suppress``, since the loss does not take constraints into account.
        end_in_reward: Whether the captions that ``reward`` gets have the end as their last word. The references of the
            reward must then have it, too.
        scale: As for ``caption_loss``.

    Returns:
        "loss_reward": its value is minus the mean reward, for the log; its gradient is that of ``caption_loss`` with
        the weights of the captions.

    Raises:
        ValueError: An unknown method, or too few samples.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: use one of {', '.join(METHODS)}")
    if samples < 1 + (method != "greedy"):
        raise ValueError(f"{samples} samples: {method} needs at least {1 + (method != 'greedy')}")
    captioner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(captioner, UpDownCaptioner)

    def rewards_of(captions: DecodedCaptions) -> Tensor:
        words = [caption for image in captions.words(captioner.special.end, end_in_reward) for caption in image]
        each = captions.tokens.shape[1]
        scores = reward(words, [image_id for image_id in image_ids for _ in range(each)])
        return upload(torch.from_numpy(scores.astype(np.float32)), features.device).view(-1, each)

    with _evaluation(captioner):
        if method == "beam":
            captions = beam_search(
                captioner, features, mask, beam=samples, max_length=max_length, constraints=constraints
            )
        else:
            captions = sample(
                captioner, features, mask, samples=samples, max_length=max_length, constraints=constraints
            )
        rewards = rewards_of(captions)
        if method == "greedy":
            best = greedy(captioner, features, mask, max_length=max_length, constraints=constraints)
            baseline = rewards_of(best)
        elif method == "beam":
            baseline = rewards.mean(dim=1, keepdim=True)
        else:
            baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (samples - 1)

    begin = torch.full_like(captions.tokens[:, :, :1], captioner.special.begin)
    logits = model(features, mask, torch.cat([begin, captions.tokens[:, :, :-1]], dim=2))
    loss = caption_loss(
        logits, captions.tokens, captions.mask, unk=captioner.special.unk, weights=rewards - baseline, scale=scale
    )
    # The value of the weighted loss is near 0 whatever the model learns. The reward is more useful in the log.
    return {"loss_reward": loss - loss.detach() - rewards.mean()}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode for the block, and restores its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
