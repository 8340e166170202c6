from types import SimpleNamespace

import pytest

from bua.detection.evaluation import published
from bua.detection.evaluation.published import ORIGINAL, metric_prefix, published_scores
from bua.engine.log import metrics_table
from bua.vocabulary import Vocabulary

OBJECTS, ATTRIBUTES = Vocabulary(["cat", "stop sign,stopsign"]), Vocabulary(["red"])


def data_set(name="visual_genome_val", objects=OBJECTS, attributes=ATTRIBUTES):
    return SimpleNamespace(name=name, objects=objects, attribute_names=attributes)


@pytest.fixture
def small(monkeypatch):
    """Makes the two small vocabularies the published ones."""
    monkeypatch.setattr(published, "VOCABULARIES", tuple(map(published._digest, (OBJECTS, ATTRIBUTES))))


def test_visual_genomes_val_with_the_published_vocabularies_has_published_scores(small):
    assert published_scores([data_set()]) == ORIGINAL
    for other in (
        data_set("visual_genome_test"),
        data_set("shapes_val"),
        data_set(objects=Vocabulary(["cat", "stop sign"])),
        data_set(attributes=Vocabulary(["blue"])),
    ):
        assert published_scores([other]) == {}
    both = published_scores([data_set("visual_genome_test"), data_set()])
    assert both == {f"visual_genome_val/{name}": value for name, value in ORIGINAL.items()}
    assert metric_prefix("visual_genome_val", 2) == "visual_genome_val/"


def test_the_original_vocabularies_are_recognised(shared_data):
    folder = shared_data / "visual_genome"
    vocabularies = [Vocabulary.read(folder / f"{kind}_vocab.txt") for kind in ("objects", "attributes")]
    assert published_scores([data_set("visual_genome_val", *vocabularies)]) == ORIGINAL


def test_the_table_shows_them_beside_the_originals_metrics():
    metrics = {"objects/original/mAP50": 0.0913, "objects/mAP50": 0.0921, "attributes/original/weighted_mAP50": 0.2712}
    assert metrics_table(metrics, fractions=True, published=ORIGINAL).splitlines() == [
        "objects/original/mAP50                     9.13 %   published  10.2 %",
        "objects/mAP50                              9.21 %",
        "attributes/original/weighted_mAP50        27.12 %   published  27.8 %",
    ]
    assert metrics_table({"accuracy": 63.5}) == f"{'accuracy':40}  63.50 %"
