import pytest
import torch

from bua.detection.catalog import get_dataset
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
    """Overrides of configs/shapes.yaml that make a run over a few images short; the data sets are there."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dataset = get_dataset("shapes_train")
    values = {
        "DATASETS.TRAIN": "('shapes_train', 'shapes_val')",
        "DATASETS.TEST": "('shapes_test',)",
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": len(dataset.objects),
        "MODEL.BUA.ATTRIBUTES.NUM_CLASSES": len(dataset.attribute_names),
        "INPUT.MIN_SIZE_TRAIN": "(64, 80)",
        "INPUT.MIN_SIZE_TEST": "64",
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "4",
        "SOLVER.CHECKPOINT_PERIOD": "2",
        "TEST.EVAL_PERIOD": "0",
        "SEED": "1",
    }

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
