"""The configuration of a short training run of the detector on a few images of Shapes."""

from bua.detection.catalog import get_dataset


def short_training_values(max_iter: int, checkpoint_period: int) -> dict[str, object]:
    """Returns values for keys of configs/shapes.yaml. Shapes must be prepared in DETECTRON2_DATASETS."""
    dataset = get_dataset("shapes_train")
    return {
        "DATASETS.TRAIN": "('shapes_train', 'shapes_val')",
        "DATASETS.TEST": "('shapes_test',)",
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": len(dataset.objects),
        "MODEL.BUA.ATTRIBUTES.NUM_CLASSES": len(dataset.attribute_names),
        "INPUT.MIN_SIZE_TRAIN": "(64, 80)",
        "INPUT.MIN_SIZE_TEST": "64",
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.CHECKPOINT_PERIOD": checkpoint_period,
        "TEST.EVAL_PERIOD": "0",
        "SEED": "1",
    }
