import numpy as np
import pytest
import torch
from caption_examples import VARIANTS, WORDS, images, small

from bua.captioning import Constraints, UpDownCaptioner, beam_search, caption_loss, greedy, self_critical_loss
from bua.captioning.self_critical import METHODS

IDS = ["cat", "dog"]


def count_threes(captions: list[list[int]], image_ids: list[str]) -> np.ndarray:
    return np.array([caption.count(3) - 0.1 * len(caption) for caption in captions])


def gradients(model: UpDownCaptioner) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "variant"), [("beam", "original"), ("greedy", "original"), ("leave_one_out", "gru")]
)
def test_reward_rises(method, variant):
    """An image shows one of three things. The reward is high for short captions that begin with the thing's name."""
    things = torch.eye(3).unsqueeze(1)
    mask = torch.ones(3, 1, dtype=torch.bool)
    torch.manual_seed(0)
    sizes = {"feature_dim": 3, "embedding_dim": 8, "hidden_dim": 16, "attention_dim": 8}
    model = UpDownCaptioner(WORDS, **sizes | VARIANTS[variant] | {"initial_std": None})
    names = [word for word in range(WORDS) if word not in model.special]

    def reward(captions, image_ids):
        return np.array(
            [(caption[:1] == [names[thing]]) - 0.1 * len(caption) for caption, thing in zip(captions, image_ids)]
        )

    def mean_reward() -> float:
        captions = greedy(model, things, mask, max_length=4).words(model.special.end)
        return reward([caption for (caption,) in captions], range(3)).mean()

    before = mean_reward()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        losses = self_critical_loss(
            model, things, mask, range(3), reward, method=method, samples=6, max_length=4, scale=1.0
        )
        optimizer.zero_grad()
        losses["loss_reward"].backward()
        optimizer.step()
    assert mean_reward() > before + 0.5


def test_beam_loss_is_the_weighted_cross_entropy_of_the_beam():
    model, (features, mask) = small(), images(3, 4)
    captions = beam_search(model, features, mask, beam=4)
    words = captions.words(end=0)
    rewards = torch.from_numpy(np.stack([count_threes(image, []) for image in words])).float()
    for image in range(2):
        for k in range(4):
            # A caption at a time, unpadded, its end a target.
            targets = captions.tokens[image, k][captions.mask[image, k]].unsqueeze(0)
            inputs = torch.cat([torch.zeros(1, 1, dtype=torch.int64), targets[:, :-1]], dim=1)
            logits = model(features[[image]], mask[[image]], inputs)
            share = (targets != 1).sum() / (captions.mask & (captions.tokens != 1)).sum()
            weight = (rewards[image, k] - rewards[image].mean()).unsqueeze(0)
            loss = caption_loss(logits, targets, torch.ones_like(targets, dtype=torch.bool), weights=weight)
            (loss * share).backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    loss = self_critical_loss(model, features, mask, IDS, count_threes, samples=4)["loss_reward"]
    loss.backward()
    assert loss.item() == pytest.approx(-rewards.mean().item())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize(("method", "calls"), [("beam", [6]), ("greedy", [6, 2]), ("leave_one_out", [6])])
def test_the_reward_gets_words_and_image_ids(method, calls):
    model, (features, mask) = small(), images(3, 4)
    given = []

    def reward(captions, image_ids):
        given.append((captions, image_ids))
        return np.zeros(len(captions))

    for end_in_reward in (False, True):
        self_critical_loss(model, features, mask, IDS, reward, method=method, samples=3, end_in_reward=end_in_reward)
        assert [len(captions) for captions, _ in given] == calls
        for captions, image_ids in given:
            assert image_ids == [image_id for image_id in IDS for _ in range(len(captions) // 2)]
            ends = [caption.count(0) for caption in captions if len(caption) < 20]
            assert ends == [int(end_in_reward)] * len(ends)
        given.clear()


@pytest.mark.parametrize("method", METHODS)
def test_equal_rewards_give_no_gradient(method):
    model, (features, mask) = small(), images(3, 4)

    def reward(captions, image_ids):
        return np.full(len(captions), 0.7)

    self_critical_loss(model, features, mask, IDS, reward, method=method)["loss_reward"].backward()
    assert all(gradient.abs().max() < 1e-5 for gradient in gradients(model).values())


def test_the_end_becomes_more_probable_if_it_is_rewarded():
    model, (features, mask) = small(), images(3, 4)
    words = model(features, mask, torch.zeros(2, 1, dtype=torch.int64)).detach()

    def reward(captions, image_ids):
        return np.array([-len(caption) for caption in captions])

    self_critical_loss(model, features, mask, IDS, reward, method="beam", max_length=3)["loss_reward"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    after = model(features, mask, torch.zeros(2, 1, dtype=torch.int64)).detach()
    assert (after.log_softmax(-1)[:, 0, 0] > words.log_softmax(-1)[:, 0, 0]).all()


def test_constraints_hold_for_the_captions_of_training():
    model, (features, mask) = small(), images(3, 4)
    seen = []

    def reward(captions, image_ids):
        seen.extend(captions)
        return np.zeros(len(captions))

    rules = Constraints(repeatable=(), suppress=(1,))
    for method in METHODS:
        self_critical_loss(model, features, mask, IDS, reward, method=method, constraints=rules)
    assert seen
    assert all(1 not in caption and len(set(caption)) == len(caption) for caption in seen)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_parameters_learn_in_bfloat16(variant):
    """Autocast's cache of weights that were cast without gradient must not be used in the pass with gradient."""
    model, (features, mask) = small(**VARIANTS[variant]).train(), images(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = self_critical_loss(model, features, mask, IDS, count_threes)["loss_reward"]
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    assert model.training


def test_captions_are_generated_without_dropout_and_trained_with_it():
    model, (features, mask) = small(dropout=0.5).train(), images(3, 4)
    expected = [caption for image in beam_search(small(), features, mask).words(end=0) for caption in image]
    seen = []

    def reward(captions, image_ids):
        seen.append(captions)
        return count_threes(captions, image_ids)

    found = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        self_critical_loss(model, features, mask, IDS, reward)["loss_reward"].backward()
        found.append(model.predict.weight.grad.clone())
    assert seen == [expected, expected]
    assert not torch.equal(*found)


def test_distributed_model(tmp_path):
    model, (features, mask) = small(), images(3, 4)
    self_critical_loss(model, features, mask, IDS, count_threes)["loss_reward"].backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad(set_to_none=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        self_critical_loss(parallel, features, mask, IDS, count_threes)["loss_reward"].backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"method": "other"}, "other"), ({"samples": 1}, "1 samples"), ({"method": "leave_one_out", "samples": 1}, "2")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        self_critical_loss(small(), *images(3, 4), IDS, count_threes, **arguments)
