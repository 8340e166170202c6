"""What the readers of LMDBs expect under an image's key: a pickled dictionary, whose fields differ between them.

- ViLBERT (jiasenlu/vilbert_beta, script/convert_trainval_lmdb.py): the columns of the original's TSV, as text.
- VOLTA (e-bug/volta, volta/datasets/_image_features_reader.py): the same under LXMERT's names.
- vilbert-multi-task (facebookresearch/vilbert-multi-task, script/convert_to_lmdb.py): numbers and arrays.
- MMF (facebookresearch/mmf, tools/scripts/features/lmdb_conversion.py): numbers and arrays under MMF's names.

bua adds the labels under LXMERT's names, which these readers ignore, and, where they were kept, the probabilities of
all classes [n, C + 1] as ``cls_prob``, with the background in front, as in the TSVs of ViLBERT and VOLTA.
"""

import pickle
from collections.abc import Callable, Mapping

import numpy as np

from bua.features.encoding import encode_array
from bua.features.labels import FLOAT, labels_of
from bua.features.mmf import info_of
from bua.features.probabilities import with_background
from bua.io import safe_pickle
from bua.structures import Regions

_VOLTA_NAMES = {"image_id": "img_id", "image_w": "img_w", "image_h": "img_h"}


def vilbert_row(regions: Regions) -> bytes:
    """Returns the value of an image for ViLBERT."""
    return pickle.dumps(_as_text(regions, {}), protocol=4)


def volta_row(regions: Regions) -> bytes:
    """Returns the value of an image for VOLTA."""
    return pickle.dumps(_as_text(regions, _VOLTA_NAMES), protocol=4)


def multi_task_row(regions: Regions) -> bytes:
    """Returns the value of an image for vilbert-multi-task."""
    row: dict[str, object] = {
        "image_id": str(regions.image_id),
        "image_h": int(regions.height),
        "image_w": int(regions.width),
        "num_boxes": len(regions),
        "boxes": np.asarray(regions.boxes, FLOAT),
        "features": np.asarray(regions.features, FLOAT),
    }
    row |= {name: np.asarray(labels, dtype) for name, labels, dtype in labels_of(regions)}
    if regions.class_probs is not None:
        row["cls_prob"] = with_background(regions.class_probs)
    return safe_pickle.dumps(row)


def mmf_row(regions: Regions) -> bytes:
    """Returns the value of an image for MMF."""
    row = {"feature_path": str(regions.image_id), "features": np.asarray(regions.features, FLOAT)}
    return safe_pickle.dumps(row | info_of(regions))


# The functions by the reader's name; None is ViLBERT.
ROWS: Mapping[str | None, Callable[[Regions], bytes]] = {
    None: vilbert_row,
    "mmf": mmf_row,
    "vilbert-multi-task": multi_task_row,
    "volta": volta_row,
}


def _as_text(regions: Regions, names: Mapping[str, str]) -> dict[str, str]:
    """Returns the fields of ViLBERT, some of them under other names."""
    row = {
        "image_id": str(regions.image_id),
        "image_w": str(regions.width),
        "image_h": str(regions.height),
        "num_boxes": str(len(regions)),
        "boxes": encode_array(regions.boxes, FLOAT),
        "features": encode_array(regions.features, FLOAT),
    }
    row |= {name: encode_array(labels, dtype) for name, labels, dtype in labels_of(regions)}
    if regions.class_probs is not None:
        row["cls_prob"] = encode_array(with_background(regions.class_probs), FLOAT)
    return {names.get(name, name): value for name, value in row.items()}
