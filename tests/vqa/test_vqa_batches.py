from itertools import islice

import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import BOXES_PER_BUCKET, RegionReader
from bua.tasks.words import WordVocabulary
from bua.vqa.answers import AnswerVocabulary, SoftTargets
from bua.vqa.batches import VqaLoader, evaluation_batches
from bua.vqa.dataset import VqaDataset

DIM = 3
NUM_IMAGES = 30


def image(image_id: int) -> Regions:
    """Returns an image with 0 to 29 boxes, and features that float16 represents exactly."""
    rng = np.random.default_rng(image_id)
    count = (image_id * 7) % NUM_IMAGES
    corners = rng.integers(0, 50, (count, 4)).astype(np.float32)
    features = rng.integers(-99, 99, (count, DIM)).astype(np.float32)
    return Regions(image_id, 100 + image_id, 50 + image_id, corners, features)


def write(path, image_ids, format="flat-fp16"):
    return write_features(path, map(image, image_ids), format)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return write(tmp_path_factory.mktemp("flat") / "features", range(NUM_IMAGES))


@pytest.fixture(scope="module")
def dataset() -> VqaDataset:
    """Three questions per image, with 0, 1 and 2 answers."""
    words = WordVocabulary(["a", "b", "c"])
    number = np.arange(3 * NUM_IMAGES)
    counts = number % 3
    labels = np.concatenate([(np.arange(count) + index) % 5 for index, count in enumerate(counts)]).astype(np.int32)
    targets = SoftTargets(
        np.concatenate([[0], counts.cumsum()]), labels, ((np.arange(len(labels)) % 4 + 1) / 4).astype(np.float32)
    )
    texts = [" ".join("abc"[: 1 + index % 3]) for index in number]
    answers = AnswerVocabulary(list("vwxyz"))
    return VqaDataset("toy", 1000 + number, number // 3, words.encode_all(texts, 4), targets, words, answers)


def check(batch, dataset, front=False):
    count = len(batch)
    most = max(1, *(len(image(image_id)) for image_id in batch.image_ids.tolist()))
    assert batch.features.shape == (count, most, DIM)
    targets = batch.targets()
    assert targets.shape == (count, 5)
    for row in range(count):
        index = int(batch.question_ids[row]) - 1000
        item, regions = dataset[index], image(int(batch.image_ids[row]))
        assert item.image_id == batch.image_ids[row]
        size = len(regions)
        assert batch.mask[row].tolist() == [True] * size + [False] * (most - size)
        assert np.array_equal(batch.features[row, :size].numpy(), regions.features)
        assert not batch.features[row, size:].any()
        fractions = regions.boxes / [regions.width, regions.height, regions.width, regions.height]
        assert np.allclose(batch.boxes[row, :size].numpy(), fractions)
        assert not batch.boxes[row, size:].any()
        words = [number for number in item.words.tolist() if number < 3]
        padding = [3] * (4 - len(words))
        assert batch.words[row].tolist() == (padding + words if front else words + padding)
        expected = np.zeros(5, np.float32)
        expected[item.labels] = item.scores
        assert targets[row].tolist() == expected.tolist()


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_has_every_question_once(flat, dataset, threads):
    reader = RegionReader.open([flat])
    batches = list(evaluation_batches(dataset, reader, 8, word_padding="front", threads=threads))
    for batch in batches:
        assert batch.features.dtype == torch.float16
        check(batch, dataset, front=True)
    asked = np.concatenate([batch.question_ids for batch in batches])
    assert sorted(asked.tolist()) == dataset.question_ids.tolist()
    assert [len(batch) for batch in batches] == [8] * 11 + [2]
    cells = sum(batch.mask.numel() for batch in batches)
    assert sum(int(batch.mask.sum()) for batch in batches) > 0.9 * cells


@pytest.mark.parametrize("format", ["flat", "tsv", "npz"])
def test_any_format_gives_the_same(tmp_path, flat, dataset, format):
    reader = RegionReader.open([write(tmp_path / "features", range(NUM_IMAGES), format)])
    for batch in evaluation_batches(dataset, reader, 16, word_padding="end"):
        assert batch.features.dtype == torch.float32
        check(batch, dataset)


@pytest.mark.parametrize("formats", [("flat-fp16", "flat-fp16"), ("flat", "flat-fp16"), ("flat-fp16", "npz")])
def test_several_files(tmp_path, dataset, formats):
    parts = range(0, NUM_IMAGES, 2), range(1, NUM_IMAGES, 2)
    paths = [write(tmp_path / str(i), ids, format) for i, (ids, format) in enumerate(zip(parts, formats))]
    reader = RegionReader.open(paths)
    for batch in islice(VqaLoader(dataset, reader, 7, seed=1, word_padding="end"), 30):
        check(batch, dataset)


def questions(batches):
    return [batch.question_ids.tolist() for batch in batches]


def make_loader(flat, dataset, **options):
    options = {"seed": 3, "word_padding": "end", **options}
    return VqaLoader(dataset, RegionReader.open([flat]), 6, **options)


def test_training_has_every_question_in_an_epoch_and_goes_on_anywhere(flat, dataset):
    loader = make_loader(flat, dataset)
    expected = questions(islice(loader, 40))
    epoch = loader.batches_per_epoch
    assert sorted(np.concatenate(expected[:epoch]).tolist()) == dataset.question_ids.tolist()
    assert expected[:epoch] != expected[epoch : 2 * epoch]
    assert questions(islice(make_loader(flat, dataset, threads=0), 40)) == expected
    for taken in (1, epoch - 1, epoch, epoch + 3):
        first = make_loader(flat, dataset)
        assert questions(islice(first, taken)) == expected[:taken]
        second = make_loader(flat, dataset, seed=99, threads=0)
        second.load_state_dict(first.state_dict())
        assert questions(islice(second, 40 - taken)) == expected[taken:]


def test_images_of_a_batch_have_similar_numbers_of_boxes(flat, dataset):
    loader = make_loader(flat, dataset)
    batches = list(islice(loader, loader.batches_per_epoch))
    # Each range of numbers of boxes has a multiple of 6 questions here.
    assert all(len(set((batch.mask.sum(dim=1) // BOXES_PER_BUCKET).tolist())) == 1 for batch in batches)


def test_processes_share_each_batch(flat, dataset):
    alone = questions(islice(make_loader(flat, dataset), 20))
    shares = [
        questions(islice(make_loader(flat, dataset, process_index=index, num_processes=2), 20)) for index in range(2)
    ]
    assert [sorted(one + two) for one, two in zip(*shares)] == [sorted(batch) for batch in alone]


def test_without_answers(flat, dataset):
    asked = VqaDataset(**vars(dataset) | {"targets": None})
    batch = next(evaluation_batches(asked, RegionReader.open([flat]), 4, word_padding="end"))
    assert not batch.targets().any()
    assert len(batch.rows) == 0


def test_to_a_device(flat, dataset):
    batch = next(iter(make_loader(flat, dataset)))
    moved = batch.to("cpu")
    assert moved.features.dtype == torch.float32
    check(moved, dataset)


def test_images_without_features_are_reported_in_one_line(tmp_path, dataset):
    reader = RegionReader.open([write(tmp_path / "some", range(3, NUM_IMAGES))])
    message = r"^/.*/some: lacks 3 of the 30 images of toy: 0, 1, 2; extract features of"
    with pytest.raises(InputError, match=message):
        evaluation_batches(dataset, reader, 4, word_padding="end")
    with pytest.raises(InputError, match=message):
        VqaLoader(dataset, reader, 4, seed=0, word_padding="end")
    reader = RegionReader([{29: image(29)}])
    with pytest.raises(
        InputError, match=r"^features: lacks 29 of the 30 images of toy: 0, 1, 2, 3, 4, \.\.\.; extract features"
    ):
        evaluation_batches(dataset, reader, 4, word_padding="end")


def test_a_damaged_file_is_reported_in_one_line(tmp_path, dataset):
    path = write(tmp_path / "features.tsv", range(NUM_IMAGES), "tsv")
    path.write_bytes(path.read_bytes().replace(b"\n5\t105\t55\t5\t", b"\n5\t105\t55\t8\t"))
    loader = VqaLoader(dataset, RegionReader.open([path]), 6, seed=0, word_padding="end")
    with pytest.raises(InputError, match=r"features\.tsv: line 6: boxes: 80 bytes do not fit"):
        list(islice(loader, loader.batches_per_epoch))
