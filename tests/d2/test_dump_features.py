"""The hook that writes features during a training: when it does, and what it does with outputs that are there."""

from types import SimpleNamespace

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed (README.md, With Detectron2)")

import bua.d2
from bua.d2.trainer import Trainer
from bua.errors import InputError
from bua.features import open_features


@pytest.fixture
def hook(shapes, tmp_path):
    cfg = bua.d2.load_cfg("configs/shapes.yaml", shapes())
    made = bua.d2.DumpFeatures(2, cfg, tmp_path / "dumped", min_boxes=3, max_boxes=4)
    model = Trainer.build_model(cfg)
    made.trainer = SimpleNamespace(model=model, iter=0, max_iter=4, build_test_loader=Trainer.build_test_loader)
    return made


def test_it_writes_every_so_often_and_at_the_end_and_keeps_what_is_there(hook, monkeypatch):
    hook.trainer.model.train()
    for hook.trainer.iter in range(4):
        hook.after_step()
    assert [path.name for path in hook.output.iterdir()] == ["shapes_test_0000002.tsv"]
    assert hook.trainer.model.training
    assert len(open_features(hook.output / "shapes_test_0000002.tsv")) == 3

    def interrupted(*_):
        raise KeyboardInterrupt

    hook.trainer.iter = 4
    with monkeypatch.context() as patched:
        patched.setattr(bua.d2.FeatureDumper, "_merge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hook.after_train()
    assert not (hook.output / "shapes_test_0000004.tsv").exists()
    before = (hook.output / "shapes_test_0000002.tsv").stat().st_mtime_ns
    hook.dump(2)
    hook.after_train()
    assert (hook.output / "shapes_test_0000002.tsv").stat().st_mtime_ns == before
    assert not list(hook.output.glob("*.parts"))
    assert len(open_features(hook.output / "shapes_test_0000004.tsv")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "grid-pth"}, "feature maps of whole images"),
        ({"format": "hdf5"}, "the same number of boxes"),
        ({"min_boxes": 5, "max_boxes": 4}, "need 0 <= min <= max"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_training(options, message):
    with pytest.raises(InputError, match=message):
        bua.d2.DumpFeatures(0, bua.d2.load_cfg("configs/shapes.yaml"), "dumped", **options)
