"""Answers of trained models, alone and together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_questions import COLORS, FEATURE_DIM, see, write_world

from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import RegionBatch, RegionReader
from bua.tasks.words import WordVocabulary, pad_in_front, tokenize
from bua.vqa import BAN, UpDown, inference
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.batches import evaluation_batches
from bua.vqa.config import build_model, get_cfg
from bua.vqa.dataset import VqaDataset, prepare_vqa
from bua.vqa.inference import VqaModel, answer_question, load_vqa, predict

WORDS = WordVocabulary(tokenize("what color is the star moon cup how many things are there"))
ANSWERS = AnswerVocabulary([*COLORS, "1", "2", "3"])
kinds = pytest.mark.parametrize("kind", [UpDown, BAN])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, {"train": 20, "val": 12, "test": 4})
    prepare_vqa(root / "vqa", root / "prepared", min_count=1)
    return root


def vqa_model(
    kind: type,
    seed: int = 0,
    answers: AnswerVocabulary = ANSWERS,
    look: bool = True,
    boxes: bool = False,
    feature_dim: int = FEATURE_DIM,
    glimpses: int = 2,
) -> VqaModel:
    torch.manual_seed(seed)
    cfg = get_cfg()
    cfg.MODEL.NAME, cfg.DATA.LOOK, cfg.DATA.BOXES = kind.__name__, look, boxes
    cfg.MODEL[kind.__name__.upper()].update({"EMBEDDING_DIM": 8, "HIDDEN_DIM": 8, "GLIMPSES": glimpses})
    model = build_model(cfg, len(WORDS), len(answers), feature_dim).eval()
    return VqaModel(model, cfg, feature_dim, WORDS, answers)


class Fixed(nn.Module):
    """Says the same whatever it is asked."""

    word_padding, feature_dim = "end", FEATURE_DIM

    def __init__(self, logits: list[float]):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, features, boxes, mask, question):
        return self.logits.expand(len(question), -1), mask.float()


def fixed(logits: list[float], answers: AnswerVocabulary) -> VqaModel:
    return VqaModel(Fixed(logits), get_cfg(), FEATURE_DIM, WORDS, answers)


def one_image(seed: int = 0) -> Regions:
    return see(7, np.array([0, 2]), np.array([1, 3]), np.random.default_rng(seed))


@pytest.mark.parametrize("boxes", [False, True], ids=["features", "features and boxes"])
@kinds
def test_a_data_set_is_answered_as_single_questions_are(world, kind, boxes):
    vqa, dataset = vqa_model(kind, boxes=boxes), VqaDataset.load(world / "prepared", "val")
    reader = RegionReader.open([world / "features.flat"])
    labels = predict([vqa], dataset, reader, batch_size=7, progress=False)
    for index in range(0, len(dataset), 5):
        words = [dataset.words.words[i] for i in dataset.questions[index] if i < len(dataset.words)]
        regions = reader.stores[0][int(dataset.image_ids[index])]
        best, attention = answer_question(vqa, regions, " ".join(words), top=1)
        assert best[0].text == ANSWERS.answers[labels[index]]
        assert 0 <= best[0].score <= 1
        assert attention.shape == (len(regions),)
        assert attention.sum() == pytest.approx(1)


def test_models_together_decide_by_the_mean_of_their_logits(world):
    dataset, reader = VqaDataset.load(world / "prepared", "test"), RegionReader.open([world / "features.flat"])
    answers = AnswerVocabulary(["a", "b", "c"])
    models = [fixed(logits, answers) for logits in ([3.0, 2, 0], [0.0, 2, 3], [0.0, 1, 0])]
    alone = [predict([model], dataset, reader, progress=False) for model in models]
    assert [labels.tolist() for labels in alone] == [[label] * len(dataset) for label in (0, 2, 1)]
    assert predict(models, dataset, reader, progress=False).tolist() == [1] * len(dataset)
    models[1] = replace(models[1], answers=AnswerVocabulary(["c", "b", "a"]))
    with pytest.raises(InputError, match="different answer vocabularies"):
        predict(models, dataset, reader, progress=False)


@torch.inference_mode()
def labels_by_the_mean(models, dataset, reader):
    """Returns the labels by the mean of the logits that each model computes of one question after another."""
    labels = []
    for row in range(len(dataset)):
        logits = []
        for vqa in models:
            words = dataset.in_vocabularies(vqa.words, vqa.answers).questions[row : row + 1]
            if vqa.model.word_padding == "front":
                words = pad_in_front(words, len(vqa.words))
            image_id = dataset.image_ids[row : row + 1]
            regions = RegionBatch(*reader.read(image_id, np.zeros(1, np.int64)), image_id)
            seen = vqa.visible(regions).to("cpu")
            tokens = torch.from_numpy(words.astype(np.int64))
            logits.append(vqa.model(seen.features, seen.boxes, seen.mask, tokens)[0][0])
        labels.append(int(torch.stack(logits).mean(dim=0).argmax()))
    return labels


def test_models_that_read_the_same_batches_share_them(world, monkeypatch):
    dataset, reader = VqaDataset.load(world / "prepared", "test"), RegionReader.open([world / "features.flat"])
    paddings = []

    def counted(*arguments, word_padding, **keywords):
        paddings.append(word_padding)
        return evaluation_batches(*arguments, word_padding=word_padding, **keywords)

    monkeypatch.setattr(inference, "evaluation_batches", counted)
    models = [vqa_model(kind, seed, boxes=boxes) for kind in (UpDown, BAN) for seed, boxes in ((1, False), (2, True))]
    together = predict(models, dataset, reader, progress=False)
    assert sorted(paddings) == ["end", "front"]
    models[0] = replace(models[0], words=WordVocabulary(WORDS.words[::-1]))
    predict(models[:2], dataset, reader, progress=False)
    assert len(paddings) == 4
    models[0] = replace(models[0], words=WORDS)
    assert together.tolist() == labels_by_the_mean(models, dataset, reader)


def test_features_of_another_detector(world):
    dataset, reader = VqaDataset.load(world / "prepared", "test"), RegionReader.open([world / "features.flat"])
    with pytest.raises(InputError, match=r"features\.flat: the feature dimension is 9, but .* of dimension 5"):
        predict([vqa_model(BAN), vqa_model(BAN, feature_dim=5)], dataset, reader, progress=False)


@pytest.mark.parametrize("boxes", [False, True])
def test_updown_and_ban_together(world, boxes):
    """They pad questions at different ends, and one may see boxes that the other does not."""
    dataset, reader = VqaDataset.load(world / "prepared", "test"), RegionReader.open([world / "features.flat"])
    models = [vqa_model(UpDown, boxes=boxes), vqa_model(BAN)]
    labels = predict(models, dataset, reader, progress=False)
    assert labels.tolist() == labels_by_the_mean(models, dataset, reader)


@kinds
def test_only_a_model_with_boxes_sees_where_regions_are(kind):
    """BAN's counter sees them always, but only how much they overlap."""
    image = one_image()
    moved = replace(image, boxes=image.boxes / 2)
    for boxes in (False, True):
        vqa = vqa_model(kind, seed=2, boxes=boxes)
        before, after = (answer_question(vqa, regions, "how many things")[0] for regions in (image, moved))
        assert (before == after) is not boxes
    assert vqa.feature_dim == FEATURE_DIM
    assert vqa.model.feature_dim == FEATURE_DIM + 7


@kinds
def test_padding_does_not_change_the_answers_of_a_model_with_boxes(kind):
    vqa, image = vqa_model(kind, boxes=True), RegionBatch.of_image(one_image())
    padded = RegionBatch(
        *(torch.cat([part, torch.full_like(part, 0.5)], dim=1) for part in (image.features, image.boxes)),
        mask=torch.cat([image.mask, torch.zeros_like(image.mask)], dim=1),
        image_ids=image.image_ids,
    )
    words = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected, found = (
            vqa.model(batch.features, batch.boxes, batch.mask, words)[0]
            for batch in (vqa.visible(image), vqa.visible(padded))
        )
    torch.testing.assert_close(found, expected)


@kinds
def test_an_image_without_regions_is_answered(kind):
    empty = Regions(1, 10, 10, np.zeros((0, 4), np.float32), np.zeros((0, FEATURE_DIM), np.float32))
    answers, attention = answer_question(vqa_model(kind), empty, "What color is the star?")
    assert len(answers) == 5
    assert attention.shape == (0,)
    blind, _ = answer_question(vqa_model(kind, look=False), one_image(), "What color is the star?")
    assert [answer.text for answer in blind] == [answer.text for answer in answers]


def test_the_best_answers_come_first():
    vqa = fixed([0.0, 3, -1, 2], AnswerVocabulary(list("abcd")))
    answers, _ = answer_question(vqa, one_image(), "star", top=9)
    assert [answer.text for answer in answers] == list("bdac")
    assert answers[2].score == 0.5


def test_words_that_are_not_known(caplog):
    vqa = vqa_model(UpDown)
    with pytest.raises(InputError, match="none of its words is among the 12 of the vocabulary"):
        answer_question(vqa, one_image(), "Quo vadis?")
    with pytest.raises(InputError, match="none of its words"):
        answer_question(vqa, one_image(), "")
    answer_question(vqa, one_image(), "What color is the zeppelin?")
    assert "does not know zeppelin" in caplog.text


def test_a_checkpoint_of_version_0_1_0_names_word_vectors_otherwise(tmp_path):
    vqa = vqa_model(UpDown, glimpses=1)
    sizes = "UPDOWN: {EMBEDDING_DIM: 8, HIDDEN_DIM: 8, GLIMPSES: 1}"
    config = f"MODEL: {{NAME: UpDown, {sizes}}}\nDATA: {{WORD_VECTORS: seed}}"
    torch.save({"model": vqa.model.state_dict(), **vqa.describe(), "config": config}, tmp_path / "model.pth")
    loaded = load_vqa(tmp_path / "model.pth")
    assert loaded.cfg.DATA.WORD_VECTORS == "authors"
    question = "What color is the star?"
    expected, found = (answer_question(model, one_image(), question)[0] for model in (vqa, loaded))
    assert found == expected


def test_checkpoints_that_cannot_be_used(tmp_path):
    def assert_error(message: str, **saved):
        torch.save(saved, tmp_path / "model.pth")
        with pytest.raises(InputError, match=message) as error:
            load_vqa(tmp_path / "model.pth")
        assert "\n" not in str(error.value)

    assert_error("lacks config, question_vocabulary, answer_vocabulary, feature_dim; .* --vqa-folder", model={})
    vqa = vqa_model(UpDown, glimpses=1)
    parts = {"question_vocabulary": WORDS.words, "answer_vocabulary": ANSWERS.answers, "feature_dim": FEATURE_DIM}
    config = "MODEL: {NAME: UpDown, UPDOWN: {EMBEDDING_DIM: 8, HIDDEN_DIM: 4}}"
    assert_error("its weights do not fit its configuration", model=vqa.model.state_dict(), config=config, **parts)
    assert_error("of another version .*MODEL.UPDOWN.WIDTH", model={}, config="MODEL: {UPDOWN: {WIDTH: 3}}", **parts)
    with pytest.raises(InputError, match=r"none\.pth"):
        load_vqa(tmp_path / "none.pth")
