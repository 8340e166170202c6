from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.engine.loader import TrainingLoader, aspect_groups
from bua.errors import InputError


def numbered(item, rng):
    return item, float(rng.random())


def fail_at_three(item, rng):
    if item == 3:
        raise InputError("3.jpg: truncated")
    return item


def make_loader(size=7, batch_size=2, **options):
    return TrainingLoader(range(size), numbered, batch_size, **{"seed": 4, **options})


def take(loader, count):
    return list(islice(loader, count))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    groups=st.one_of(st.none(), st.integers(1, 4)),
)
def test_an_epoch_contains_every_item(size, batch_size, seed, groups):
    labels = None if groups is None else np.arange(size) % groups
    loader = make_loader(size, batch_size, seed=seed, groups=labels)
    plan = loader.plan(3)
    assert plan.shape == (loader.batches_per_epoch, batch_size)
    counts = np.bincount(plan.ravel(), minlength=size)
    assert (counts >= 1).all()
    assert counts.sum() - size < batch_size
    if labels is not None:
        mixed = sum(len(set(labels[batch])) > 1 for batch in plan)
        assert mixed <= groups


def test_epochs_differ_and_seeds_differ():
    loader = make_loader(20)
    assert loader.plan(0).tolist() == loader.plan(0).tolist()
    assert loader.plan(0).tolist() != loader.plan(1).tolist()
    assert loader.plan(0).tolist() != make_loader(20, seed=5).plan(0).tolist()


def test_the_number_of_workers_does_not_change_the_batches():
    expected = take(make_loader(), 9)
    for workers in (1, 2):
        assert take(make_loader(num_workers=workers), 9) == expected
    values = [value for batch in expected for _, value in batch]
    assert len(set(values)) > 10


def test_processes_share_each_batch():
    alone = take(make_loader(12, 4), 7)
    shares = [take(make_loader(12, 4, process_index=index, num_processes=2), 7) for index in range(2)]
    assert [first + second for first, second in zip(*shares)] == alone


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_continues_from_the_state_of_another(workers):
    expected = take(make_loader(groups=np.arange(7) % 2), 12)
    for taken in range(12):
        first = make_loader(groups=np.arange(7) % 2, num_workers=0)
        assert take(first, taken) == expected[:taken]
        second = make_loader(groups=np.arange(7) % 2, num_workers=workers if taken % 4 == 3 else 0, seed=99)
        second.load_state_dict(first.state_dict())
        assert take(second, 12 - taken) == expected[taken:]


def test_the_state_counts_yielded_batches_only():
    loader = make_loader(20, num_workers=2)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"seed": 4, "epoch": 0, "items": 2}


def test_only_the_items_to_keep_are_used():
    loader = make_loader(10, keep=np.array([1, 4, 8]), batch_size=3)
    assert {item for item, _ in take(loader, 1)[0]} == {1, 4, 8}


def test_a_small_data_set_fills_a_large_batch():
    (batch,) = take(make_loader(2, batch_size=5), 1)
    assert sorted({item for item, _ in batch}) == [0, 1]
    assert len(batch) == 5


def test_collate_makes_the_batch():
    (batch,) = take(make_loader(4, batch_size=4, collate=dict), 1)
    assert set(batch) == {0, 1, 2, 3}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_is_raised_unchanged(workers):
    loader = TrainingLoader(range(6), fail_at_three, 6, seed=0, num_workers=workers)
    with pytest.raises(InputError, match=r"^3\.jpg: truncated$"):
        take(loader, 1)


def test_an_uneven_batch_and_an_empty_data_set_are_errors():
    with pytest.raises(InputError, match="IMS_PER_BATCH is 5; it must be a multiple of 2, the number of processes"):
        make_loader(batch_size=5, num_processes=2)
    with pytest.raises(InputError, match="IMS_PER_BATCH is 0"):
        make_loader(batch_size=0)
    with pytest.raises(InputError, match=r"no items.*DATASETS\.TRAIN"):
        make_loader(keep=np.array([], dtype=int))


def test_aspect_groups():
    assert aspect_groups(np.array([[10, 20], [20, 10], [5, 5]])).tolist() == [1, 0, 0]
