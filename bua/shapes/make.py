"""Makes Shapes, a small data set of drawn images in the formats of the real data sets.

Visual Genome, COCO, VQA v2 and Flickr30k cannot ship with the code. Shapes replaces them in tests, in the demo and
wherever a first try should take minutes. All images and annotations follow from the random seed: the same arguments
give the same bytes, whatever the number of processes.

``make_shapes`` writes::

    VG_100K/<image_id>.jpg, VG_100K_2/...            the images
    {image_data,objects,attributes,relationships,scene_graphs,region_descriptions,question_answers}.json
    {object,relationship}_alias.txt                  (version 1.4 only)
    splits/{train,val,test}.txt                      vocab/{objects,attributes,relations}_vocab.txt
    {train2014,val2014,test2015}/COCO_*.jpg          links to the images under COCO's names
    vqa/v2_OpenEnded_mscoco_*_questions.json         vqa/v2_mscoco_*_annotations.json
    captions/dataset_coco.json                       captions/captions_{train2014,val2014}.json
    flickr30k_entities/{Annotations,Sentences}/      flickr30k_entities/{train,val,test}.txt
    flickr30k_images/<flickr_id>.jpg                 links
    shapes.json                                      the arguments; this file is written last

``bua.shapes.scene`` describes what an image shows, ``bua.shapes.task_files`` explains the ids of an image, and
``bua.shapes.visual_genome`` lists the annotation errors in the files.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import orjson
from tqdm import tqdm

from bua.errors import InputError, make_folder
from bua.io.files import exclusive, whole_file
from bua.regular_files import read_regular
from bua.shapes.scene import compose_scene, draw_scene
from bua.shapes.task_files import DrawnImage, caption_records, flickr30k_entities, vqa_records
from bua.shapes.text import ask_questions, write_sentence
from bua.shapes.visual_genome import visual_genome_records, vocabulary_lines

T = TypeVar("T")
R = TypeVar("R")

VERSIONS = ("1.2", "1.4")
# Increase this number when a change of the code changes the bytes that the same arguments give. Folders that were made
# before are then no longer accepted as complete.
REVISION = 2
SPLITS = ("train", "val", "test")
VISUAL_GENOME_FILES = (
    "image_data",
    "objects",
    "attributes",
    "relationships",
    "scene_graphs",
    "region_descriptions",
    "question_answers",
)
QUESTIONS_PER_IMAGE = 8
# So many, because where things are relative to each other is learned from 10,000 such questions, but not from 4,000.
VQA_QUESTIONS_PER_IMAGE = 24
SENTENCES_PER_IMAGE = 5
JPEG_QUALITY = 92
MARKER = "shapes.json"
MARKER_UNFINISHED = "shapes.json.unfinished"
# For fewer images, starting processes takes longer than drawing in this one.
MIN_IMAGES_FOR_PROCESSES = 100


def make_shapes(
    root: str | os.PathLike,
    num_train: int = 4000,
    num_val: int = 300,
    num_test: int = 500,
    seed: int = 0,
    version: str = "1.4",
    processes: int | None = None,
) -> bool:
    """Writes the Shapes data set into ``root``.

    A folder that already holds the same data set is left as it is. If the same call was interrupted before, it is
    continued.

    Args:
        root: The folder, such as ``datasets/shapes``. It is created if it does not exist.
        num_train, num_val, num_test: Number of images in each split, 0 or more.
        seed: Random seed, 0 or more.
        version: Version of the Visual Genome files, "1.2" or "1.4".
        processes: Number of processes that draw images. By default there is one per CPU core.

    Returns:
        True if files were written, False if the data set was there already.

    Raises:
        InputError: An argument is out of range, or ``root`` holds something else.
    """
    arguments = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "seed": seed, "version": version}
    _check(arguments)
    root = Path(root)
    described = {"revision": REVISION, **arguments}
    # A complete data set may lie where nothing can be written, not even a lock.
    if (root / MARKER).is_file() and _read_marker(root / MARKER) == described:
        return False
    make_folder(root.parent)
    with exclusive(root):
        if not _begin(root, described):
            return False
        _draw(root, arguments, processes)
    return True


def _draw(root: Path, arguments: dict, processes: int | None) -> None:
    seed, version = arguments["seed"], arguments["version"]
    counts = {split: arguments[f"num_{split}"] for split in SPLITS}
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    make = functools.partial(_make_image, root, seed, version)
    with tqdm(total=len(jobs), desc=f"drawing {root}", unit=" images") as progress:
        made = []
        for result in _map(make, list(enumerate(jobs, start=1)), processes):
            made.append(result)
            progress.update()
    _write_visual_genome(root, made, version)
    _write_coco(root, made)
    _write_flickr30k(root, made)
    os.replace(root / MARKER_UNFINISHED, root / MARKER)


def _check(arguments: dict) -> None:
    for name, value in arguments.items():
        if name == "version":
            if value not in VERSIONS:
                raise InputError(f"make_shapes: version: {value!r} is not known; choose one of {', '.join(VERSIONS)}")
        elif value < 0:
            raise InputError(f"make_shapes: {name}: {value} is negative; give 0 or more")
    if not arguments["num_train"] + arguments["num_val"] + arguments["num_test"]:
        raise InputError("make_shapes: num_train, num_val, num_test: all are 0; ask for at least one image")


def _begin(root: Path, arguments: dict) -> bool:
    """Creates the folders and marks the data set as unfinished. Returns False if the data set is already complete."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; name a folder")
    for marker in (MARKER, MARKER_UNFINISHED):
        if (root / marker).exists():
            if _read_marker(root / marker) != arguments:
                raise InputError(
                    f"{root / marker}: the Shapes data set in this folder was made with other arguments or by another"
                    " version of bua; name another folder or delete this one"
                )
            if marker == MARKER:
                return False
            break
    else:
        if root.exists() and any(root.iterdir()):
            raise InputError(f"{root}: is not empty and holds no Shapes data set; name another folder")
        make_folder(root)
        _write_json(root / MARKER_UNFINISHED, arguments, indent=True)
    for folder in (
        *("VG_100K", "VG_100K_2", "splits", "vocab", "train2014", "val2014", "test2015", "vqa", "captions"),
        *("flickr30k_images", "flickr30k_entities/Annotations", "flickr30k_entities/Sentences"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return True


def _read_marker(path: Path) -> dict | None:
    try:
        return orjson.loads(read_regular(path))
    except (OSError, orjson.JSONDecodeError):
        return None


def _map(function: Callable[[T], R], jobs: Sequence[T], processes: int | None) -> Iterator[R]:
    """Applies ``function`` to each job and yields the results in order."""
    processes = processes or os.cpu_count() or 1
    if processes == 1 or len(jobs) < MIN_IMAGES_FOR_PROCESSES:
        yield from map(function, jobs)
        return
    # Processes are spawned, since the threads of OpenCV and torch do not work after a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker) as pool:
        yield from pool.map(function, jobs, chunksize=32)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C sends SIGINT to every process. Only the parent process reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make_image(root: Path, seed: int, version: str, job: tuple[int, tuple[str, int]]) -> tuple[DrawnImage, dict]:
    """Draws one image and writes the files that belong to it alone.

    Returns:
        The image, and its records for the files that hold all images.
    """
    image_id, (split, index) = job
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = DrawnImage(compose_scene(rng), image_id, split)
    path = root / image.path
    if not path.exists():
        jpeg = cv2.imencode(".jpg", draw_scene(image.scene), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        _write(path, jpeg.tobytes())
    questions = ask_questions(image.scene, QUESTIONS_PER_IMAGE, rng)
    sentences = [write_sentence(image.scene, rng) for _ in range(SENTENCES_PER_IMAGE)]
    xml, marked_sentences = flickr30k_entities(image, sentences)
    _write(root / f"flickr30k_entities/Annotations/{image.flickr_id}.xml", xml.encode())
    _write(root / f"flickr30k_entities/Sentences/{image.flickr_id}.txt", marked_sentences.encode())
    _link(root / f"flickr30k_images/{image.flickr_id}.jpg", image)
    records = visual_genome_records(image, version, questions, rng)
    if image.coco_id is not None:
        # With a generator of their own, another number of these questions changes nothing else of the data set.
        vqa_rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
        vqa_questions = ask_questions(image.scene, VQA_QUESTIONS_PER_IMAGE, vqa_rng)
        records |= vqa_records(image, vqa_questions, vqa_rng) | caption_records(image, sentences)
        for subset in sorted({image.coco_subset, image.vqa_subset}):
            _link(root / image.coco_path(subset), image)
    return image, records


def _link(path: Path, image: DrawnImage) -> None:
    if not path.is_symlink():
        path.symlink_to(f"../{image.path}")


def _write_visual_genome(root: Path, made: list[tuple[DrawnImage, dict]], version: str) -> None:
    for name in VISUAL_GENOME_FILES:
        _write_json(root / f"{name}.json", [records[name] for _, records in made])
    vocabularies = vocabulary_lines()
    for name, lines in vocabularies.items():
        _write(root / f"vocab/{name}_vocab.txt", "\n".join(lines).encode())
    if version == "1.4":
        for name, lines in (("object", vocabularies["objects"]), ("relationship", vocabularies["relations"])):
            _write_lines(root / f"{name}_alias.txt", lines)
    for split in SPLITS:
        paths = [image.path for image, _ in made if image.split == split]
        _write_lines(
            root / f"splits/{split}.txt", [f"{path} xml/{path.split('/')[1].replace('.jpg', '.xml')}" for path in paths]
        )


def _write_coco(root: Path, made: list[tuple[DrawnImage, dict]]) -> None:
    made = [(image, records) for image, records in made if image.coco_id is not None]
    info = {"description": "Shapes, drawn by bua; not the COCO data set", "version": "2.0"}
    for subset in ("train2014", "val2014", "test2015"):
        chosen = [records for image, records in made if image.vqa_subset == subset]
        common = {"info": info, "license": {}, "data_type": "mscoco", "data_subtype": subset}
        questions = [question for records in chosen for question in records["questions"]]
        annotations = [annotation for records in chosen for annotation in records["annotations"]]
        _write_json(
            root / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json",
            common | {"task_type": "Open-Ended", "questions": questions},
        )
        _write_json(root / f"vqa/v2_mscoco_{subset}_annotations.json", common | {"annotations": annotations})

    for subset in ("train2014", "val2014"):
        chosen = [records for image, records in made if image.coco_subset == subset]
        content = {
            "info": info,
            "licenses": [],
            "images": [records["coco_image"] for records in chosen],
            "annotations": [caption for records in chosen for caption in records["coco_captions"]],
        }
        _write_json(root / f"captions/captions_{subset}.json", content)

    images = []
    sentence_id = 0
    for image_number, (_, records) in enumerate(made):
        sentences = []
        for sentence in records["karpathy"]["sentences"]:
            sentences.append(sentence | {"imgid": image_number, "sentid": sentence_id})
            sentence_id += 1
        numbers = {"imgid": image_number, "sentids": [sentence["sentid"] for sentence in sentences]}
        images.append(records["karpathy"] | numbers | {"sentences": sentences})
    _write_json(root / "captions/dataset_coco.json", {"images": images, "dataset": "coco"})


def _write_flickr30k(root: Path, made: list[tuple[DrawnImage, dict]]) -> None:
    for split in SPLITS:
        ids = [str(image.flickr_id) for image, _ in made if image.split == split]
        _write_lines(root / f"flickr30k_entities/{split}.txt", ids)


def _write_lines(path: Path, lines: list[str]) -> None:
    _write(path, "".join(line + "\n" for line in lines).encode())


def _write_json(path: Path, content: object, indent: bool = False) -> None:
    _write(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 if indent else 0))


def _write(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing, since a later run would keep the incomplete file of an interrupted one."""
    with whole_file(path) as file:
        file.write(content)
