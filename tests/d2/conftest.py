import pytest
import torch
from short_training import short_training_values

from bua.shapes.make import make_shapes
from bua.visual_genome.prepare import prepare


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    make_shapes(root / "shapes", num_train=7, num_val=3, num_test=3, processes=1)
    prepare(root / "shapes", "shapes", progress=False)
    return root


@pytest.fixture
def shapes(shapes_root, monkeypatch):
    """Returns a function that makes overrides of configs/shapes.yaml for a short run on a few images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = short_training_values(max_iter=4, checkpoint_period=2)

    def overrides(**changes):
        merged = {**values, **{key.replace("__", "."): value for key, value in changes.items()}}
        return [str(part) for pair in merged.items() for part in pair]

    return overrides


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
