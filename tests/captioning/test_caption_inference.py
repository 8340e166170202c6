import json
from pathlib import Path

import numpy as np
import pytest
import torch
from caption_world import tool

from bua.captioning.config import build_model, get_cfg
from bua.captioning.inference import Captioner, caption_regions, load_captioner, predict
from bua.captioning.vocabulary import CaptionVocabulary
from bua.checkpoint import save_checkpoint
from bua.errors import InputError
from bua.features import open_writer
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader

DIM = 6
VOCABULARY = CaptionVocabulary([".", "<unk>", "a", "cat", "dog", "on", "mat", "'", "s"])


def make_captioner(seed: int = 0, vocabulary: CaptionVocabulary = VOCABULARY, dim: int = DIM, **data) -> Captioner:
    """A captioner whose weights all matter; ``data`` are keys of ``DATA``."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in {"MAX_LENGTH": 6, **data}.items():
        cfg.DATA[key] = value
    for key in ("HIDDEN_DIM", "EMBEDDING_DIM", "ATTENTION_DIM"):
        cfg.MODEL.UPDOWN[key] = 8
    cfg.MODEL.UPDOWN.INITIAL_STD = 0.8
    torch.manual_seed(seed)
    return Captioner(build_model(cfg, vocabulary, dim).eval(), cfg, dim, vocabulary)


def save(path: Path, captioner: Captioner) -> Path:
    save_checkpoint(path, model=captioner.model.state_dict(), **captioner.describe())
    return path


def image(image_id: int, boxes: int, dim: int = DIM) -> Regions:
    rng = np.random.default_rng(image_id)
    corners = np.sort(rng.random((boxes, 2, 2)), axis=1).reshape(boxes, 4) * [80, 60, 80, 60]
    return Regions(image_id, 80, 60, corners.astype(np.float32), rng.normal(size=(boxes, dim)).astype(np.float32))


@pytest.fixture
def images() -> list[Regions]:
    return [image(image_id, boxes) for image_id, boxes in ((7, 3), (5, 9), (9, 1), (6, 4), (8, 9))]


@pytest.fixture
def features(tmp_path, images) -> Path:
    with open_writer(tmp_path / "features", "flat") as writer:
        for regions in images:
            writer.append(regions)
        writer.finish()
    return tmp_path / "features"


@pytest.mark.parametrize(
    "data", [{}, {"MAX_BOXES": 3}, {"BOXES": True}, {"LOOK": False}], ids=["all", "first boxes", "boxes", "blind"]
)
def test_an_image_alone_and_among_others(images, features, data):
    captioners = [make_captioner(seed, **data) for seed in (0, 1)]
    ids = np.array([regions.image_id for regions in images])
    predicted = predict(captioners, ids, RegionReader.open([features]), batch_size=2, progress=False)
    assert list(predicted) == ids.tolist()
    for regions in images:
        captions = caption_regions(captioners, regions)
        assert 1 <= len(captions) <= 5
        assert [caption.score for caption in captions] == sorted((c.score for c in captions), reverse=True)
        best = captions[0]
        assert best.words == [VOCABULARY.words[number] for number in predicted[regions.image_id]]
        assert best.text == VOCABULARY.decode(predicted[regions.image_id])
        assert best.attention.shape == (len(best.words), len(regions))
        assert np.allclose(best.attention.sum(axis=1), 0 if "LOOK" in data else 1, atol=1e-5)
        assert not best.attention[:, data.get("MAX_BOXES", 99) :].any()


def test_boxes_are_read_where_asked_for():
    regions = image(1, 4)
    moved = Regions(1, 80, 60, regions.boxes[::-1].copy(), regions.features)
    for boxes in (False, True):
        captioner = make_captioner(BOXES=boxes)
        scores = [caption_regions([captioner], one)[0].score for one in (regions, moved)]
        assert (scores[0] != scores[1]) == boxes


def test_lengths_of_features_do_not_matter_where_they_are_normalized():
    regions = image(1, 4)
    longer = Regions(1, 80, 60, regions.boxes, regions.features * 3)
    for normalize in (False, True):
        captioner = make_captioner(NORMALIZE=normalize)
        scores = [caption_regions([captioner], one)[0].score for one in (regions, longer)]
        assert (abs(scores[0] - scores[1]) < 1e-4) == normalize


def test_the_checkpoint_says_all(tmp_path, images):
    captioner = make_captioner(BOXES=True)
    captioner.cfg.DECODING.BEAM = 3
    path = save(tmp_path / "model.pth", captioner)
    loaded = load_captioner(path)
    assert loaded.vocabulary == captioner.vocabulary
    for regions in images:
        expected, found = caption_regions([captioner], regions), caption_regions([loaded], regions)
        assert [caption.text for caption in found] == [caption.text for caption in expected]
        assert len(found) == 3
    assert len(caption_regions([load_captioner(path, overrides=["DECODING.BEAM", "1"])], images[0])) == 1


def test_decoding_by_keys(tmp_path, images):
    path = save(tmp_path / "model.pth", make_captioner(MAX_LENGTH=12))
    free = ["DECODING.WORDS_ONCE", "False", "DECODING.NO_WORD_TWICE_IN_A_ROW", "False"]

    def words(*overrides: str) -> list[list[str]]:
        captioner = load_captioner(path, overrides=overrides)
        return [caption.words for regions in images for caption in caption_regions([captioner], regions)]

    strict, loose = words(), words(*free)
    assert all(said.count(word) <= 1 for said in strict for word in ("cat", "dog", "mat"))
    assert any(said.count(word) > 1 for said in loose for word in ("cat", "dog", "mat"))
    assert not any("<unk>" in said for said in strict)
    assert any("<unk>" in said for said in words("DECODING.NO_UNKNOWN_WORDS", "False"))
    shorter = [said for said in words("DECODING.NO_BAD_ENDINGS", "True") if len(said) < 12]
    assert shorter
    assert not any(said and said[-1] in ("a", "on") for said in shorter)


def test_captioners_that_do_not_go_together(images):
    for other, message in (
        (make_captioner(vocabulary=CaptionVocabulary([".", "<unk>", "a"])), "different vocabularies"),
        (make_captioner(BOXES=True), "read different things"),
        (make_captioner(MAX_BOXES=3), "read different things"),
        (make_captioner(dim=4), "read different things"),
    ):
        with pytest.raises(InputError, match=message):
            caption_regions([make_captioner(), other], images[0])


def test_features_of_another_detector(features):
    captioner = make_captioner(dim=4)
    with pytest.raises(InputError, match=r"features: the feature dimension is 6, but the model .* of dimension 4"):
        predict([captioner], np.array([7]), RegionReader.open([features]), progress=False)
    with pytest.raises(InputError, match=r"image 3: the feature dimension is 6, but the model .* of dimension 4"):
        caption_regions([captioner], image(3, 2))


def test_checkpoints_that_cannot_be_used(tmp_path):
    captioner = make_captioner()
    path = save(tmp_path / "model.pth", captioner)
    detector, broken = tmp_path / "detector.pth", tmp_path / "broken.pth"
    save_checkpoint(detector, model={})
    save_checkpoint(broken, model={}, **captioner.describe())
    for given, overrides, message in (
        (tmp_path / "none.pth", [], "none.pth"),
        (detector, [], "lacks config, words, tokenizer, feature_dim; name a checkpoint"),
        (broken, [], "do not fit its configuration"),
        (path, ["DECODING.BEAM"], "DECODING.BEAM: give keys and values"),
        (path, ["DATA.BOXES", "True"], "DATA.BOXES: give keys and values; the keys are DECODING.BEAM"),
        (path, ["DECODING.BEAM", "many"], "DECODING.BEAM many"),
        (path, ["DECODING.BEAM", "0"], "DECODING.BEAM is 0; it must be 1 or more"),
        (path, ["DECODING.LENGTH_PENALTY", "max"], "use one of '', 'avg', 'wu'"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_captioner(given, overrides=overrides)
        assert "\n" not in str(error.value)


def test_the_tool_writes_what_the_scores_take(tmp_path, images, features, capsys):
    main = tool("tools/predict_caption.py")
    models = [str(save(tmp_path / f"{seed}.pth", make_captioner(seed))) for seed in (0, 1)]
    output = tmp_path / "new" / "captions.json"
    arguments = ["--captioner", *models, "--features", str(features), "--output", str(output)]
    assert main(["DECODING.BEAM", "2", *arguments]) == 0
    assert capsys.readouterr().out == f"{output}: 5 captions\n"
    written = {record["image_id"]: record["caption"] for record in json.loads(output.read_text())}
    captioners = [load_captioner(model, overrides=["DECODING.BEAM", "2"]) for model in models]
    assert written == {regions.image_id: caption_regions(captioners, regions)[0].text for regions in images}

    for more, message in (
        (["--split", "test"], "give both, or neither"),
        (["--folder", str(tmp_path), "--split", "test"], "prepare-captions"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err


def test_images_with_names_cannot_go_to_the_server(tmp_path, capsys):
    with open_writer(tmp_path / "features", "flat") as writer:
        writer.append(Regions("cat", 80, 60, np.zeros((1, 4), np.float32), np.zeros((1, DIM), np.float32)))
        writer.finish()
    model = save(tmp_path / "model.pth", make_captioner())
    arguments = ["--captioner", str(model), "--features", str(tmp_path / "features"), "--output", "no.json"]
    assert tool("tools/predict_caption.py")(arguments) == 2
    assert "the image id 'cat' is not a number" in capsys.readouterr().err
