"""The data of the demos: the images of Shapes, and their features under the image ids of several data sets."""

from collections.abc import Sequence
from pathlib import Path

from bua.demo.tasks import DemoPaths
from bua.detection.annotations import DetectionDataset
from bua.features import convert_features
from bua.io.json_records import iter_records
from bua.shapes.make import MARKER, make_shapes
from bua.shapes.oracle_features import write_oracle_features
from bua.visual_genome.prepare import prepare
from bua.visual_genome.splits import SPLITS


def make_data(folder: Path, num_train: int, num_val: int, num_test: int, seed: int = 0) -> None:
    """Makes the images of Shapes in ``folder`` and prepares them for the detector, unless they are there already.

    Args:
        num_train, num_val, num_test: Number of images of each split.
        seed: Random seed.
    """
    annotation_files = [folder / "annotations" / f"shapes_{split}.json" for split in SPLITS]
    if not all(path.is_file() for path in annotation_files):
        if not (folder / MARKER).is_file():
            make_shapes(folder, num_train, num_val, num_test, seed)
        prepare(folder, "shapes")
    counts = [len(DetectionDataset(path, folder)) for path in annotation_files]
    print(f"images in {folder}: {', '.join(f'{count} {split}' for count, split in zip(counts, SPLITS))}")


def copy_by_other_ids(paths: DemoPaths, datasets: Sequence[DetectionDataset]) -> None:
    """Copies the extracted features from Visual Genome's image ids to COCO's and to Flickr30k's, and writes the
    features of the ground-truth regions, too.

    Args:
        datasets: The annotated images.
    """
    image_data = paths.shapes / "image_data.json"
    coco, flickr30k = _ids(image_data, "coco_id"), _ids(image_data, "flickr_id")
    for name, ids in (("coco", coco), ("flickr30k", flickr30k)):
        convert_features(paths.features("visual_genome"), paths.features(name), "flat-fp16", ids=dict(ids.items()))
    write_oracle_features(datasets, paths.features("perfect"), image_id_of=coco.get, progress=False)


def _ids(image_data: Path, key: str) -> dict[int, int]:
    """Returns another data set's ids of Visual Genome's images, by Visual Genome's id, for the images that it has.

    Args:
        image_data: Visual Genome's image_data.json.
        key: Field of a record that holds the other id: "coco_id" or "flickr_id".
    """
    records = iter_records(image_data, progress=False)
    return {record["image_id"]: record[key] for record in records if record[key] is not None}
