"""Shapes: a small world of drawn images, written in the formats of the real data sets.

Visual Genome, COCO, VQA v2 and Flickr30k cannot ship with the code; this stands in for them in tests, in the demo and
wherever a first try should take minutes. Everything is drawn from the seed, image by image: the same arguments
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
    shapes.json                                      the arguments, written last

``bua.shapes.scene`` says what an image shows, ``bua.shapes.task_files`` how the ids relate,
``bua.shapes.visual_genome`` what dirt the files hold.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import orjson
from tqdm import tqdm

from bua.errors import InputError, make_folder
from bua.io.files import whole_file
from bua.shapes.scene import compose_scene, draw_scene
from bua.shapes.task_files import DrawnImage, caption_records, flickr30k_entities, vqa_records
from bua.shapes.text import ask_questions, write_sentence
from bua.shapes.visual_genome import visual_genome_records, vocabulary_lines

VERSIONS = ("1.2", "1.4")
# To be raised when the same arguments come to give other bytes, so that a folder made before is not taken for current.
REVISION = 1
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
SENTENCES_PER_IMAGE = 5
JPEG_QUALITY = 92
MARKER = "shapes.json"
MARKER_UNFINISHED = "shapes.json.unfinished"
# Starting processes costs more than drawing this many images.
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

    A folder that holds the same data set already is left as it is; one in which the same call was interrupted is
    completed.

    Args:
        root: folder, such as ``datasets/shapes``; made where it is missing.
        num_train, num_val, num_test: images in each split, 0 or more.
        seed: 0 or more.
        version: of the Visual Genome files, "1.2" or "1.4".
        processes: that draw at once; by default one for each available CPU core.

    Returns:
        True where it wrote, False where everything was there.

    Raises:
        InputError: an argument is out of range, or ``root`` holds something else.
    """
    arguments = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "seed": seed, "version": version}
    _check(arguments)
    root = Path(root)
    if not _begin(root, {"revision": REVISION, **arguments}):
        return False
    counts = dict(zip(SPLITS, (num_train, num_val, num_test)))
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
    return True


def _check(arguments: dict) -> None:
    for name, value in arguments.items():
        if name == "version":
            if value not in VERSIONS:
                raise InputError(f"make_shapes: version: {value!r} is not one of {', '.join(VERSIONS)}")
        elif value < 0:
            raise InputError(f"make_shapes: {name}: {value} is negative; give 0 or more")
    if not arguments["num_train"] + arguments["num_val"] + arguments["num_test"]:
        raise InputError("make_shapes: num_train, num_val, num_test: all are 0; ask for one image at least")


def _begin(root: Path, arguments: dict) -> bool:
    """Claims the folder; False where the data set is there already."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; name a folder")
    for marker in (MARKER, MARKER_UNFINISHED):
        if (root / marker).exists():
            if _read_marker(root / marker) != arguments:
                raise InputError(
                    f"{root / marker}: the folder holds a Shapes data set made with other arguments or by another bua;"
                    " name another folder or delete this one"
                )
            if marker == MARKER:
                return False
            break
    else:
        if root.exists() and any(root.iterdir()):
            raise InputError(f"{root}: is not empty and no Shapes data set; name another folder")
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
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None


def _map(function, jobs: list, processes: int | None) -> Iterator:
    processes = processes or os.cpu_count() or 1
    if processes == 1 or len(jobs) < MIN_IMAGES_FOR_PROCESSES:
        yield from map(function, jobs)
        return
    # Spawned, because OpenCV's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker) as pool:
        yield from pool.map(function, jobs, chunksize=32)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches every process; the parent alone reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make_image(root: Path, seed: int, version: str, job: tuple[int, tuple[str, int]]) -> tuple[DrawnImage, dict]:
    """Draws one image and writes its own files; returns it with its part of the common files."""
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
        records |= vqa_records(image, questions, rng) | caption_records(image, sentences)
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
        _write_json(
            root / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json",
            common | {"task_type": "Open-Ended", "questions": questions},
        )
        annotations = [annotation for records in chosen for annotation in records["annotations"]]
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


def _write_json(path: Path, content, indent: bool = False) -> None:
    _write(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 if indent else 0))


def _write(path: Path, content: bytes) -> None:
    """All or nothing, so that an interrupted run leaves no half a file that a later one would keep."""
    with whole_file(path) as file:
        file.write(content)
