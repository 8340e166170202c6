"""Where the names of a detector's classes come from."""

import hashlib

import pytest
import torch

from bua.config import load_cfg
from bua.download.catalog import GENOME_LISTS, GENOME_VOCABULARIES
from bua.extraction.class_names import class_names
from bua.weights.cache import place_of

SIZES = {"objects": 1600, "attributes": 400}
PUBLISHED = {kind: [f"published {kind} {i}" for i in range(size)] for kind, size in SIZES.items()}
OWN = {kind: [f"own {kind} {i}" for i in range(size)] for kind, size in SIZES.items()}
RELEASED = {"roi_heads.box_predictor.cls_embed.weight": torch.zeros(1)}  # a name of MILVLG's layout
OTHER = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(1)}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine on which the published names are others than the real ones, and which has no network."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    for kind, names in PUBLISHED.items():
        remote = GENOME_VOCABULARIES[f"vocab/{kind}_vocab.txt"][0]
        md5 = hashlib.md5(content_of(names), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(GENOME_VOCABULARIES, f"vocab/{kind}_vocab.txt", (remote, md5))

    def no_network(address, *args, **kwargs):
        raise AssertionError(f"{address} is downloaded")

    monkeypatch.setattr("bua.weights.zoo.download", no_network)
    return tmp_path


def content_of(names):
    return "\n".join(names).encode()


def put_into_cache():
    for kind, names in PUBLISHED.items():
        path = place_of(GENOME_LISTS + GENOME_VOCABULARIES[f"vocab/{kind}_vocab.txt"][0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(names))


def put_into_data_set(machine, names_by_kind):
    folder = machine / "datasets" / "visual_genome" / "vocab"
    folder.mkdir(parents=True)
    for kind, names in names_by_kind.items():
        (folder / f"{kind}_vocab.txt").write_bytes(content_of(names))
    return folder


def saved(machine, weights):
    torch.save({"model": weights}, machine / "weights.pth")
    return machine / "weights.pth"


def names_of(weights, path="weights of the zoo", **kwargs):
    objects, attributes = class_names(load_cfg("vg_r101_caffe.yaml"), weights, path, **kwargs)
    return {"objects": objects, "attributes": attributes}


def test_released_weights_have_the_published_names_and_not_those_of_the_users_data_set(machine):
    put_into_cache()
    put_into_data_set(machine, OWN)
    assert names_of("caffe-r101-10-100") == PUBLISHED


def test_the_published_names_of_a_data_set_need_no_download(machine):
    put_into_data_set(machine, PUBLISHED)
    assert names_of("caffe-r101-10-100") == PUBLISHED


def test_a_file_of_released_weights_has_the_published_names(machine, caplog):
    put_into_cache()
    path = saved(machine, RELEASED)
    assert names_of(path, path) == PUBLISHED
    assert not caplog.messages
    folder = put_into_data_set(machine, OWN)
    assert names_of(path, path) == PUBLISHED
    assert "its objects get the published names, not those in" in caplog.messages[0]
    assert names_of(path, path, folder=folder) == OWN


def test_a_file_of_released_weights_has_no_names_where_the_published_ones_are_not_at_hand(machine, caplog):
    put_into_data_set(machine, OWN)
    path = saved(machine, RELEASED)
    assert names_of(path, path) == {"objects": None, "attributes": None}
    assert "are not on this machine" in caplog.messages[0]


def test_weights_of_which_nothing_is_known_have_the_names_of_the_data_set(machine):
    put_into_cache()
    put_into_data_set(machine, OWN)
    path = saved(machine, OTHER)
    assert names_of(path, path) == OWN
    assert names_of("random", "random") == OWN
