from itertools import islice

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.captioning.batches import CaptionLoader, image_batches
from bua.captioning.dataset import CaptionDataset
from bua.captioning.vocabulary import CaptionVocabulary
from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader

DIM = 3
NUM_IMAGES = 23
VOCABULARY = CaptionVocabulary([".", "<unk>", *(f"word{number}" for number in range(2, 50))])
PIECES = CaptionVocabulary(
    [f"word{number}" for number in range(46)] + ["[UNK]", "[pad]", "[start]", "[end]"], "wordpiece"
)


def image(image_id: int) -> Regions:
    """Returns an image with 0 to 16 boxes."""
    rng = np.random.default_rng(image_id)
    count = (image_id * 7) % 17
    corners = rng.integers(0, 50, (count, 4)).astype(np.float32)
    return Regions(image_id, 100, 50, corners, rng.integers(-99, 99, (count, DIM)).astype(np.float32))


def write(path, image_ids, format="flat-fp16"):
    return write_features(path, map(image, image_ids), format)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return write(tmp_path_factory.mktemp("flat") / "features", range(100, 100 + NUM_IMAGES))


@pytest.fixture(scope="module", params=[VOCABULARY, PIECES], ids=["words", "pieces"])
def dataset(request) -> CaptionDataset:
    """Image i has 1 + i % 4 captions; caption j has 1 + j % 7 words, the first of which is 2 + j % 44."""
    counts = 1 + np.arange(NUM_IMAGES) % 4
    lengths = 1 + np.arange(counts.sum()) % 7
    words = np.concatenate([2 + (caption + np.arange(length)) % 44 for caption, length in enumerate(lengths)])
    offsets = [np.concatenate([[0], sizes.cumsum()]) for sizes in (counts, lengths)]
    image_ids = 100 + np.arange(NUM_IMAGES)
    return CaptionDataset("toy", image_ids, *offsets, words.astype(np.int32), request.param)


def expected_steps(words: list[int], vocabulary, max_length: int) -> tuple[list[int], list[int]]:
    return [vocabulary.begin, *words][:max_length], [*words, vocabulary.end][:max_length]


def targets_of(batch) -> list[list[tuple[int, ...]]]:
    """Returns the targets of each image's captions."""
    return [
        [tuple(targets[mask].tolist()) for targets, mask in zip(*rows) if mask.any()]
        for rows in zip(batch.targets, batch.target_mask)
    ]


def check(batch, dataset, max_length=20, max_boxes=None):
    vocabulary = dataset.vocabulary
    assert batch.tokens.shape == batch.targets.shape == batch.target_mask.shape
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    used = batch.target_mask.any(dim=0)
    assert used.any(dim=0).all(), "steps that no caption has"
    assert used.any(dim=1).all(), "captions that no image has"
    for row, image_id in enumerate(batch.image_ids.tolist()):
        item = dataset[image_id - 100]
        captions = [expected_steps(words.tolist(), vocabulary, max_length) for words in item.captions]
        for tokens, targets, mask in zip(batch.tokens[row], batch.targets[row], batch.target_mask[row]):
            steps = int(mask.sum())
            assert mask.tolist() == [True] * steps + [False] * (len(mask) - steps)
            assert set(tokens[steps:].tolist()) | set(targets[steps:].tolist()) <= {vocabulary.pad}
            if steps:
                captions.remove((tokens[:steps].tolist(), targets[:steps].tolist()))
    check_regions(batch, max_boxes)


def check_regions(batch, max_boxes=None):
    for row, image_id in enumerate(batch.image_ids.tolist()):
        regions = image(image_id)
        size = min(len(regions), max_boxes or 99)
        assert int(batch.mask[row].sum()) == size
        assert np.array_equal(batch.features[row, :size].numpy(), regions.features[:size])
        assert not batch.features[row, size:].any()
        assert np.allclose(batch.boxes[row, :size].numpy(), regions.boxes[:size] / [100, 50, 100, 50])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("max_length", [20, 4])
def test_an_epoch_of_all_captions(flat, dataset, threads, max_length):
    options = {"captions_per_image": None, "threads": threads, "max_length": max_length}
    loader = CaptionLoader(dataset, RegionReader.open([flat]), NUM_IMAGES, seed=1, **options)
    batch = next(iter(loader))
    assert sorted(batch.image_ids.tolist()) == dataset.image_ids.tolist()
    check(batch, dataset, max_length)
    for image_id, captions in zip(batch.image_ids.tolist(), targets_of(batch)):
        expected = [
            tuple(expected_steps(words.tolist(), dataset.vocabulary, max_length)[1])
            for words in dataset[image_id - 100].captions
        ]
        assert sorted(captions) == sorted(expected)


@pytest.mark.parametrize("threads", [0, 2])
def test_every_image_once(flat, dataset, threads):
    batches = list(image_batches(dataset.image_ids, RegionReader.open([flat]), 5, threads=threads))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate([batch.image_ids for batch in batches]).tolist()) == dataset.image_ids.tolist()
    for batch in batches:
        check_regions(batch)


def make_loader(flat, dataset, **options):
    return CaptionLoader(dataset, RegionReader.open([flat]), 4, **{"seed": 3, **options})


def seen(batches):
    return [(batch.image_ids.tolist(), targets_of(batch)) for batch in batches]


@pytest.mark.parametrize("captions_per_image", [1, 2, None])
def test_training_has_every_image_in_an_epoch_and_goes_on_anywhere(flat, dataset, captions_per_image):
    options = {"captions_per_image": captions_per_image}
    loader = make_loader(flat, dataset, **options)
    epoch = loader.batches_per_epoch
    batches = list(islice(loader, 20))
    for batch in batches:
        check(batch, dataset)
        counts = [min(len(dataset[image_id - 100].captions), captions_per_image or 9) for image_id in batch.image_ids]
        assert batch.target_mask.any(dim=2).sum(dim=1).tolist() == counts
    expected = seen(batches)
    assert set(np.concatenate([ids for ids, _ in expected[:epoch]])) == set(dataset.image_ids.tolist())
    assert expected[:epoch] != expected[epoch : 2 * epoch]
    assert seen(islice(make_loader(flat, dataset, threads=0, **options), 20)) == expected
    for taken in (1, epoch - 1, epoch, epoch + 3):
        first = make_loader(flat, dataset, **options)
        assert seen(islice(first, taken)) == expected[:taken]
        second = make_loader(flat, dataset, **options | {"seed": 99})
        second.load_state_dict(first.state_dict())
        assert seen(islice(second, 20 - taken)) == expected[taken:]


def test_each_caption_is_drawn_as_often_as_the_others(flat, dataset):
    loader = make_loader(flat, dataset)
    drawn = {}
    for batch in islice(loader, 100 * loader.batches_per_epoch):
        for image_id, captions in zip(batch.image_ids.tolist(), targets_of(batch)):
            drawn.setdefault(image_id, []).extend(captions)
    for image_id, captions in drawn.items():
        share = 1 / len(dataset[image_id - 100].captions)
        counts = [captions.count(caption) for caption in set(captions)]
        assert len(counts) == round(1 / share)
        # Five standard deviations.
        assert all(abs(count / len(captions) - share) <= 5 * (share * (1 - share) / 100) ** 0.5 for count in counts)


def test_processes_share_each_batch(flat, dataset):
    alone = seen(islice(make_loader(flat, dataset), 12))
    shares = [seen(islice(make_loader(flat, dataset, process_index=index, num_processes=2), 12)) for index in range(2)]
    for (ids, captions), *parts in zip(alone, *shares):
        assert sorted(zip(ids, captions)) == sorted(pair for part in parts for pair in zip(*part))


def test_only_the_first_boxes_are_read(flat, dataset):
    reader = RegionReader.open([flat])
    for batch in image_batches(dataset.image_ids, reader, 6, max_boxes=5):
        assert batch.features.shape[1] <= 5
        check_regions(batch, max_boxes=5)
    for batch in islice(make_loader(flat, dataset, max_boxes=5), 5):
        check(batch, dataset, max_boxes=5)


def test_several_files_of_any_format(tmp_path, dataset):
    half = 100 + NUM_IMAGES // 2
    paths = [
        write(tmp_path / "a", range(100, half), "tsv"),
        write(tmp_path / "b", range(half, 100 + NUM_IMAGES), "npz"),
    ]
    for batch in islice(CaptionLoader(dataset, RegionReader.open(paths), 6, seed=1), 8):
        check(batch, dataset)


def test_to_a_device(flat, dataset):
    batch = next(iter(make_loader(flat, dataset)))
    assert batch.features.dtype == torch.float16
    moved = batch.to("cpu")
    assert moved.features.dtype == torch.float32
    check(moved, dataset)


def test_images_without_features_are_reported_in_one_line(tmp_path, dataset):
    reader = RegionReader.open([write(tmp_path / "some", range(103, 100 + NUM_IMAGES))])
    message = r"lacks 3 of the 23 images of toy: 100, 101, 102; extract features of"
    with pytest.raises(InputError, match=message):
        CaptionLoader(dataset, reader, 4, seed=0)
    with pytest.raises(InputError, match=message):
        image_batches(dataset.image_ids, reader, 4, name="toy")
