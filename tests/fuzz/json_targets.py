"""Fuzzing of JSON and other text: lists of images, annotations, questions, captions, prepared folders, boxes,
configurations. The undamaged files are those of Shapes, which has the files of the real data sets."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from cases import Finding, Target, made_in_folder, write_files
from mutations import Files, mutate_bytes, mutate_files, mutate_json, mutate_text, mutate_zip

from bua.captioning.cider import DocumentFrequencies
from bua.captioning.dataset import CaptionDataset, prepare_captions
from bua.captioning.official import load_coco, load_karpathy, load_references, load_region_phrases, load_results
from bua.config import load_cfg
from bua.config_files import FOLDER
from bua.detection.annotations import DetectionDataset
from bua.errors import InputError
from bua.extraction.boxes_files import load_boxes
from bua.extraction.sources import list_images
from bua.features import convert_features
from bua.features.convert import read_ids
from bua.grounding.dataset import GroundingDataset, load_phrase_tags, prepare_flickr30k
from bua.io.images import read_image
from bua.shapes.make import make_shapes
from bua.tasks.glove import load_glove
from bua.visual_genome.prepare import prepare
from bua.visual_genome.splits import build_splits
from bua.visual_genome.vocabulary import build_vocabularies
from bua.vocabulary import Vocabulary
from bua.vqa.accuracy import vqa_accuracy
from bua.vqa.dataset import VqaDataset, prepare_vqa

TEXT_SUFFIXES = (".txt", ".tsv", ".xml", ".yaml")
COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": 3, "file_name": "b.jpg", "width": 20,
                                                                          "height": 10}],
    "categories": [{"id": 9, "name": "Dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3.5, 4], "attributes": ["big", "old"]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [5, 6, 7, 8], "attributes": []},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
}  # fmt: skip


@cache
def _shapes() -> Files:
    return made_in_folder(lambda root: make_shapes(root, 3, 2, 2, seed=1, processes=1))


def _of_shapes(*beginnings: str) -> Files:
    return {name: content for name, content in _shapes().items() if name.startswith(beginnings)}


def _made_of_shapes(beginnings: Iterable[str], make: Callable[[Path], object], output: str) -> Files:
    """Returns the files below ``output`` that ``make`` writes, in a folder that has those files of Shapes."""

    def write(folder: Path) -> None:
        write_files(folder, _of_shapes(*beginnings))
        make(folder)

    return {name: content for name, content in made_in_folder(write).items() if name.startswith(output)}


def _mutate(random: Random, files: Files) -> Files:
    name = random.choice(sorted(files))
    if random.random() < 0.1:
        return mutate_files(random, files, mutate_bytes)
    mutate = mutate_bytes
    if name.endswith((".json", ".jsonl")):
        mutate = mutate_json
    elif name.endswith(TEXT_SUFFIXES):
        mutate = mutate_text
    elif name.endswith(".npz") and random.random() < 0.6:
        mutate = mutate_zip
    return {**files, name: mutate(random, files[name])}


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


# Lists of images.


def _image_lists() -> list[Files]:
    images = _of_shapes("VG_100K/")
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for number, content in enumerate(images.values()):
            for suffix in ("jpg", "json"):
                info = tarfile.TarInfo(f"part/{number:03}.{suffix}")
                info.size = len(content) if suffix == "jpg" else 2
                archive.addfile(info, io.BytesIO(content if suffix == "jpg" else b"{}"))
    return [
        {"images.json": _json(COCO)},
        {"images.json": _shapes()["image_data.json"]},
        {"images.txt": b"a/b.jpg\t3\nc.jpg\n\nCOCO_val2014_000000000042.jpg\tx y\n"},
        {"images.tar": shard.getvalue()},
    ]


def _check_image_list(sample: Files) -> str:
    (source,) = sample
    images = list_images(source, "root" if source.endswith(".json") else None)
    for image in images:
        if type(image.path) is not str or type(image.image_id) not in (int, str):
            raise Finding(f"an image is {image}")
    if len({image.image_id for image in images}) < len(images):
        raise Finding("two images have the same id")
    for image in images:
        if image.span is not None:
            read_image(image.path, image.span)
    return "read"


# The detector's data.


def _annotations() -> list[Files]:
    root = ("image_data.json", "objects.json", "attributes.json", "relationships.json", "splits/", "vocab/")
    prepared = _made_of_shapes(root, lambda folder: prepare(folder, progress=False), "annotations/visual_genome_train")
    return [{"annotations.json": content} for content in (*prepared.values(), _json(COCO))]


def _check_annotations(sample: Files) -> str:
    dataset = DetectionDataset("annotations.json", ".")
    for index in range(len(dataset)):
        record = dataset[index]
        boxes, classes = dataset.boxes(index), dataset.classes(index)
        if boxes.shape != (len(classes), 4) or not np.isfinite(boxes).all():
            raise Finding(f"image {record['image_id']}: boxes {boxes.tolist()}")
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(dataset.objects):
            raise Finding(f"image {record['image_id']}: classes {classes.tolist()}")
        for subject, relation, target in dataset.relations(index).tolist():
            if not (0 <= min(subject, target) <= max(subject, target) < len(boxes)):
                raise Finding(f"image {record['image_id']}: a relation of boxes {subject} and {target}")
            if not 0 <= relation < len(dataset.relation_names):
                raise Finding(f"image {record['image_id']}: relation {relation}")
    return "read"


def _visual_genome() -> list[Files]:
    common = _of_shapes("image_data.json", "attributes.json", "splits/", "vocab/", "object_alias", "relationship_alias")
    return [
        {**common, **_of_shapes(*names)} for names in (("objects.json", "relationships.json"), ("scene_graphs.json",))
    ]


def _check_visual_genome(sample: Files) -> str:
    prepare(".", progress=False)
    for path in Path("vocab").iterdir():
        path.unlink()
    build_vocabularies(".", 3, 2, 1, progress=False)
    for path in Path("splits").iterdir():
        path.unlink()
    build_splits(".", 1, 1, progress=False)
    return "read"


# Questions, captions, phrases.


def _questions() -> list[Files]:
    files = _of_shapes("vqa/")
    annotations = json.loads(files["vqa/v2_mscoco_val2014_annotations.json"])["annotations"]
    results = [{"question_id": a["question_id"], "answer": a["multiple_choice_answer"]} for a in annotations]
    return [{"annotations.json": files["vqa/v2_mscoco_val2014_annotations.json"], "results.json": _json(results)}]


def _check_questions(sample: Files) -> str:
    scores = vqa_accuracy("results.json", "annotations.json")
    if not 0 <= scores["overall"] <= 100:
        raise Finding(f"an accuracy of {scores['overall']}")
    return "read"


def _vqa_files() -> list[Files]:
    return [_of_shapes("vqa/", "image_data.json", "question_answers.json")]


def _prepare_vqa(root: Path | str) -> None:
    prepare_vqa(Path(root) / "vqa", Path(root) / "prepared", min_count=1, visual_genome=root)


def _check_preparing_vqa(sample: Files) -> str:
    _prepare_vqa(".")
    _read_all(VqaDataset.load("prepared", "train"))
    return "read"


def _prepared_vqa() -> list[Files]:
    return [_made_of_shapes(("vqa/", "image_data", "question_answers"), _prepare_vqa, "prepared/")]


def _check_prepared_vqa(sample: Files) -> str:
    datasets = [VqaDataset.load("prepared", split) for split in ("train", "val")]
    for dataset in datasets:
        _read_all(dataset)
        if len(dataset.questions) and dataset.questions.max() > len(dataset.words):
            raise Finding("a word is not in the vocabulary")
        labels = dataset.targets.labels if dataset.targets is not None else np.zeros(0, np.int32)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(dataset.answers):
            raise Finding("an answer is not in the vocabulary")
    _read_all(VqaDataset.concatenate(datasets))
    return "read"


def _captions() -> list[Files]:
    return [
        {
            **_of_shapes("captions/", "region_descriptions.json"),
            "train.txt": b"COCO_train2014_000000100007.jpg\nCOCO_train2014_000000100014.jpg\n",
            "regions.txt": b"1\n2\n",
            "results.json": _json([{"image_id": 100007, "caption": "a cube"}, {"image_id": 5, "caption": "x"}]),
        }
    ]


def _check_captions(sample: Files) -> str:
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_karpathy("captions/dataset_coco.json"),
        lambda: load_coco(["captions/captions_train2014.json"], {"train": "train.txt"}),
        lambda: load_region_phrases("region_descriptions.json", {"train": "regions.txt"}),
        lambda: load_references("captions/captions_val2014.json"),
        lambda: load_results("results.json"),
    )
    return "refused" if sum(map(_is_refused, readers)) else "read"


def _prepare_captions(root: Path | str) -> None:
    prepare_captions(load_karpathy(Path(root) / "captions/dataset_coco.json"), Path(root) / "prepared", min_count=1)


def _check_preparing_captions(sample: Files) -> str:
    _prepare_captions(".")
    _read_all(CaptionDataset.load("prepared", "train"))
    return "read"


def _check_prepared_captions(sample: Files) -> str:
    dataset = CaptionDataset.load("prepared", "train", "val")
    _read_all(dataset)
    if len(dataset.words) and not 0 <= dataset.words.min() <= dataset.words.max() < len(dataset.vocabulary.words):
        raise Finding("a word is not in the vocabulary")
    return "read"


def _frequencies() -> list[Files]:
    counted = DocumentFrequencies.from_references({1: [["a", "cat"], ["a", "dog"]], 2: [["a", "cat", "sat"]]})
    return [made_in_folder(lambda folder: counted.save(folder / "frequencies.npz"))]


def _check_frequencies(sample: Files) -> str:
    frequencies = DocumentFrequencies.load("frequencies.npz")
    if not np.isfinite(frequencies.idf(np.arange(3, dtype=np.uint64))).all():
        raise Finding("a weight is not finite")
    if (np.diff(frequencies.hashes.astype(object)) <= 0).any():
        raise Finding("the hashes are not sorted")
    return "read"


ENTITIES = "flickr30k_entities"


def _check_preparing_flickr30k(sample: Files) -> str:
    prepare_flickr30k(ENTITIES, "prepared")
    GroundingDataset.load("prepared", "train")
    return "read"


def _check_prepared_flickr30k(sample: Files) -> str:
    datasets = [GroundingDataset.load("prepared", split) for split in ("train", "val")]
    load_phrase_tags("prepared")
    for dataset in (*datasets, GroundingDataset.concatenate(datasets)):
        for phrase in range(len(dataset.spans)):
            if dataset.boxes_of(phrase).shape[1:] != (4,):
                raise Finding("a phrase has no boxes")
        if len(dataset.sentence_of) != len(dataset.spans):
            raise Finding("phrases without a sentence")
        if any(not 0 <= start < end <= dataset.words.shape[1] for start, end in dataset.spans.tolist()):
            raise Finding("a phrase is not in its sentence")
        if dataset.words.size and dataset.words.max() > len(dataset.vocabulary):
            raise Finding("a word is not in the vocabulary")
    return "read"


def _read_all(dataset: object) -> None:
    for index in range(len(dataset)):  # type: ignore[arg-type]
        dataset[index]  # type: ignore[index]


def _is_refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except InputError:
        return True
    return False


# Boxes, vocabularies, configurations.


def _boxes() -> list[Files]:
    boxes = {"1": [[0, 0, 5, 6.5]], "x": [], "22": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    arrays = {name: np.array(rows, np.float32).reshape(-1, 4) for name, rows in boxes.items()}
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    single = {name: io.BytesIO() for name in arrays}
    for name, file in single.items():
        np.save(file, arrays[name])
    members = {name: io.BytesIO() for name in arrays}
    for name, file in members.items():
        np.savez(file, bbox=arrays[name])
    rows = "".join(f"{name}\t{x1}\t{y1}\t{x2}\t{y2}\n" for name, lists in boxes.items() for x1, y1, x2, y2 in lists)
    return [
        {"boxes.json": _json(boxes)},
        {"boxes.json": _json(COCO)},
        {"boxes.json": _json(COCO["annotations"])},
        {"boxes.tsv": rows.encode()},
        {"boxes.npz": archive.getvalue()},
        {f"boxes/{name}.npy": file.getvalue() for name, file in single.items()},
        {f"boxes/{name}.npz": file.getvalue() for name, file in members.items()},
    ]


def _check_boxes(sample: Files) -> str:
    (path,) = {name.partition("/")[0] for name in sample}
    boxes = load_boxes(path)
    refused = 0
    for image_id in boxes:
        try:
            array = boxes[image_id]
        except InputError:
            refused += 1
            continue
        if array.dtype != np.float32 or array.shape != (len(array), 4) or not np.isfinite(array).all():
            raise Finding(f"image {image_id!r}: boxes {array.tolist()}")
        if (array[:, 2:] < array[:, :2]).any():
            raise Finding(f"image {image_id!r}: boxes that end before they begin")
    return "refused" if refused else "read"


def _words() -> list[Files]:
    glove = "".join(f"word{number} {number} 0.5 -1e-3\n" for number in range(5)).encode()
    return [
        {"vocabulary.txt": b"dog\nstop sign,stopsign\n tree , trees\n", "glove.txt": glove, "ids.txt": b"1\t2\nx\ty\n"}
    ]


def _check_words(sample: Files) -> str:
    readers: tuple[Callable[[], object], ...] = (
        lambda: Vocabulary.read("vocabulary.txt"),
        lambda: load_glove("glove.txt", ["word1", "word4"], 3),
        lambda: read_ids("ids.txt"),
    )
    return "refused" if sum(map(_is_refused, readers)) else "read"


def _configurations() -> list[Files]:
    names = ("base_c4.yaml", "vg_r101.yaml", "vg_x152.yaml", "shapes.yaml")
    return [{name: (FOLDER / name).read_bytes() for name in ("base_c4.yaml", name)} for name in names]


def _check_configuration(sample: Files) -> str:
    load_cfg(sorted(sample)[-1])
    return "read"


def _settings() -> list[Files]:
    """A flat store with the settings of its extraction beside it, which a conversion copies."""
    from feature_targets import _samples

    (flat, _) = _samples("flat")
    kept = {name: content for name, content in flat.items() if not name.endswith("header.json")}
    header = next(content for name, content in flat.items() if name.endswith("header.json"))
    meta = {"detector": "vg_r101.yaml", "weights": "0f", "min_boxes": 10, "score_threshold": 0.2}
    return [{**kept, "features/header.json": header, "features.meta.json": _json(meta)}]


def _mutate_settings(random: Random, files: Files) -> Files:
    name = random.choice([name for name in files if name.endswith(".json")])
    return {**files, name: mutate_json(random, files[name])}


def _check_settings(sample: Files) -> str:
    convert_features("features", "converted", "npz")
    return "read"


def _target(samples: Callable[[], list[Files]], check: Callable[[Files], str]) -> Target:
    return Target("json", samples, _mutate, check)


TARGETS = {
    "image-lists": _target(_image_lists, _check_image_list),
    "annotations": _target(_annotations, _check_annotations),
    "prepare-visual-genome": _target(_visual_genome, _check_visual_genome),
    "vqa-results": _target(_questions, _check_questions),
    "prepare-vqa": _target(_vqa_files, _check_preparing_vqa),
    "prepared-vqa": _target(_prepared_vqa, _check_prepared_vqa),
    "captions": _target(_captions, _check_captions),
    "prepare-captions": _target(
        lambda: [_of_shapes("captions/dataset_coco")],
        _check_preparing_captions,
    ),
    "prepared-captions": _target(
        lambda: [_made_of_shapes(["captions/dataset_coco"], _prepare_captions, "prepared/")],
        _check_prepared_captions,
    ),
    "frequencies": _target(_frequencies, _check_frequencies),
    "prepare-flickr30k": _target(lambda: [_of_shapes(ENTITIES)], _check_preparing_flickr30k),
    "prepared-flickr30k": _target(
        lambda: [
            _made_of_shapes(
                [ENTITIES], lambda folder: prepare_flickr30k(folder / ENTITIES, folder / "prepared"), "prepared/"
            )
        ],
        _check_prepared_flickr30k,
    ),
    "boxes": _target(_boxes, _check_boxes),
    "words": _target(_words, _check_words),
    "configurations": _target(_configurations, _check_configuration),
    "settings": Target("json", _settings, _mutate_settings, _check_settings),
}
