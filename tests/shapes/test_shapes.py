"""Tests of Shapes: annotations are true of the images, files have the real formats, and cleaning recovers the truth."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from script_loading import load_script

from bua.errors import InputError
from bua.io.files import exclusive
from bua.shapes.make import SPLITS, VISUAL_GENOME_FILES, make_shapes
from bua.shapes.scene import COLORS, MIN_VISIBLE, SHAPES, Scene, box_iou, compose_scene, draw_scene
from bua.shapes.visual_genome import ATTRIBUTES

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = {"train": 70, "val": 10, "test": 20}
SEED = 5


def _make(root: Path, **changes) -> Path:
    arguments = {"num_train": 70, "num_val": 10, "num_test": 20, "seed": SEED, "version": "1.4", "processes": 1}
    assert make_shapes(root, **(arguments | changes))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return _make(tmp_path_factory.mktemp("shapes") / "v14")


@pytest.fixture(scope="module")
def older_folder(tmp_path_factory) -> Path:
    return _make(tmp_path_factory.mktemp("shapes") / "v12", version="1.2")


@pytest.fixture(scope="module")
def scenes() -> dict[int, Scene]:
    """Returns the scene of each image id of ``folder``."""
    jobs = [(number, index) for number, split in enumerate(SPLITS) for index in range(COUNTS[split])]
    return {
        image_id: compose_scene(np.random.default_rng([SEED, number, index]))
        for image_id, (number, index) in enumerate(jobs, start=1)
    }


def _read(path: Path):
    return json.loads(path.read_text())


def _digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# Scenes and images


def test_scenes_vary_as_documented():
    scenes = [compose_scene(np.random.default_rng([1, index])) for index in range(400)]
    counts = Counter(len(scene.things) for scene in scenes)
    things = [thing for scene in scenes for thing in scene.things]
    assert set(counts) == set(range(1, 13))
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {value for thing in things for value in thing.attributes} == set(ATTRIBUTES)
    assert min(len(SHAPES), len(ATTRIBUTES)) >= 12
    assert len(COLORS) >= 8
    assert {len(thing.attributes) for thing in things} == {0, 1, 2, 3}
    assert min(thing.visible for thing in things) >= MIN_VISIBLE
    assert min(thing.visible for thing in things) < 0.8
    assert {predicate for scene in scenes for _, predicate, _ in scene.relations} == {
        *("left of", "right of", "above", "below", "on", "inside", "in front of", "behind")
    }
    assert all(20 <= thing.side <= 80 for thing in things)
    assert len({(scene.width, scene.height) for scene in scenes}) > 20
    assert all(112 <= min(s.width, s.height) <= 144 and max(s.width, s.height) <= 200 for s in scenes)
    assert any(thing.box[0] < 0 for thing in things)
    same_shape = [
        box_iou(a.box, b.box) for s in scenes for a in s.things for b in s.things if a is not b and a.shape == b.shape
    ]
    assert max(same_shape) < 0.3


@pytest.mark.parametrize("index", range(12))
def test_boxes_are_tight_around_the_drawn_pixels(index):
    scene = compose_scene(np.random.default_rng([2, index]))
    for number, thing in enumerate(scene.things):
        # Two images that differ only in the colour of one thing show where this thing is.
        alone = [
            dataclasses.replace(scene, things=[dataclasses.replace(thing, color=color, texture=None)])
            for color in ("yellow", "blue")
        ]
        first, second = (draw_scene(image).astype(int) for image in alone)
        rows, columns = np.nonzero(np.abs(first - second).max(axis=2) > 50)
        drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(scene.clipped_box(number), drawn, atol=1)


@pytest.mark.parametrize("index", range(6))
def test_visible_share_and_colour_are_true_of_the_image(index):
    scene = compose_scene(np.random.default_rng([3, index]))
    for number, thing in enumerate(scene.things):
        changed = list(scene.things)
        changed[number] = dataclasses.replace(thing, color="yellow", texture=None)
        other = list(scene.things)
        other[number] = dataclasses.replace(thing, color="blue", texture=None)

        def count(first: list, second: list) -> int:
            images = [draw_scene(dataclasses.replace(scene, things=things)).astype(int) for things in (first, second)]
            return int((np.abs(images[0] - images[1]).max(axis=2) > 50).sum())

        # The thing is drawn in the middle of an empty image, to count all of its pixels.
        middle = (scene.width // 2, scene.height // 2)
        whole = count(
            [dataclasses.replace(changed[number], center=middle)], [dataclasses.replace(other[number], center=middle)]
        )
        assert count(changed, other) / whole == pytest.approx(thing.visible, abs=0.08)


def test_images_are_jpegs_of_the_stated_size(folder, scenes):
    entries = _read(folder / "image_data.json")
    assert [entry["image_id"] for entry in entries] == list(range(1, sum(COUNTS.values()) + 1))
    for entry in entries:
        path = folder / entry["url"].removeprefix("https://cs.stanford.edu/people/rak248/")
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"
        assert cv2.imread(str(path)).shape[:2] == (entry["height"], entry["width"])
        scene = scenes[entry["image_id"]]
        difference = cv2.imread(str(path)).astype(int) - draw_scene(scene)
        assert np.abs(difference).mean() < 6
    assert {len(list((folder / name).iterdir())) > 20 for name in ("VG_100K", "VG_100K_2")} == {True}


# Reproducibility


def test_the_same_random_seed_gives_the_same_bytes_for_any_number_of_processes(folder, tmp_path):
    assert _digest(_make(tmp_path / "again", processes=2)) == _digest(folder)


def test_another_random_seed_gives_other_images_and_texts(tmp_path):
    one, two = (_digest(_make(tmp_path / str(seed), num_train=3, num_val=0, num_test=0, seed=seed)) for seed in (0, 1))
    assert one["VG_100K/1.jpg"] != two["VG_100K/1.jpg"]
    assert one["attributes.json"] != two["attributes.json"]


def test_an_image_depends_only_on_its_split_and_number(folder, tmp_path):
    smaller = _make(tmp_path / "smaller", num_train=5, num_val=0, num_test=0)
    assert (smaller / "VG_100K/4.jpg").read_bytes() == (folder / "VG_100K/4.jpg").read_bytes()


# Visual Genome


def _vocabulary(path: Path) -> dict[str, str]:
    names = {}
    for line in path.read_text().split("\n"):
        aliases = [alias.strip().lower() for alias in line.split(",")]
        names |= dict.fromkeys(aliases, aliases[0])
    return names


def _clean(text: str) -> str:
    """Cleans a text as the original does (detector.md, 4.1)."""
    text = text.lower().strip()
    return text[:-1].strip() if text.endswith(".") else text


COMMON_ATTRIBUTES = {
    *("white", "black", "blue", "green", "red", "brown", "yellow", "small", "large", "silver", "wooden", "orange"),
    *("gray", "grey", "metal", "pink", "tall", "long", "dark"),
}


def _cleaned_objects(objects: list[dict], attributes: list[dict], root: Path, width: int, height: int) -> list[tuple]:
    object_names = _vocabulary(root / "vocab/objects_vocab.txt")
    attribute_names = _vocabulary(root / "vocab/attributes_vocab.txt")
    found = []
    for entry in objects:
        name = _clean(entry["names"][0])
        words = name.split()
        said = []
        if len(words) > 1 and set(words[:-1]) <= COMMON_ATTRIBUTES:
            name, said = words[-1], words[:-1]
        if name not in object_names:
            continue
        for other in attributes:
            if other["object_id"] == entry["object_id"]:
                said += [part.strip() for text in other.get("attributes", []) for part in _clean(text).split(" and ")]
        box = (
            max(entry["x"], 0),
            max(entry["y"], 0),
            min(entry["x"] + entry["w"], width),
            min(entry["y"] + entry["h"], height),
        )
        known = sorted({attribute_names[value] for value in said if value in attribute_names})
        found.append((object_names[name], box, known))
    return sorted(found)


def _truth(scene: Scene) -> list[tuple]:
    return sorted(
        (thing.shape, scene.clipped_box(number), sorted(thing.attributes)) for number, thing in enumerate(scene.things)
    )


@pytest.mark.parametrize("version", ["1.2", "1.4"])
@pytest.mark.parametrize("source", ["objects", "scene_graphs"])
def test_cleaning_recovers_the_truth(request, version, source, scenes):
    root = request.getfixturevalue("folder" if version == "1.4" else "older_folder")
    attributes = {entry["image_id"]: entry["attributes"] for entry in _read(root / "attributes.json")}
    duplicates = 0
    for entry in _read(root / f"{source}.json"):
        image_id = entry["image_id"]
        scene = scenes[image_id]
        cleaned = _cleaned_objects(entry["objects"], attributes[image_id], root, scene.width, scene.height)
        truth = _truth(scene)
        duplicates += len(cleaned) - len(truth)
        if image_id > COUNTS["train"]:
            assert cleaned == truth
        else:
            assert all(thing in cleaned for thing in truth)
    merged = version == "1.4" and source == "objects"
    assert (duplicates == 0) == merged


def test_the_files_have_the_annotation_errors_of_the_real_ones(folder):
    objects = [thing for entry in _read(folder / "objects.json") for thing in entry["objects"]]
    names = [thing["names"][0] for thing in objects]
    assert any(name.endswith(".") for name in names)
    assert any(name != name.lower() for name in names)
    assert any(name != name.strip() for name in names)
    assert {"circles", "disc", "wall"} & {name.lower().strip(" .") for name in names}
    assert any(len(name.split()) > 1 and name.split()[0] in COMMON_ATTRIBUTES for name in names)
    assert any(thing["x"] < 0 or thing["y"] < 0 for thing in objects)
    assert any(thing["merged_object_ids"] for thing in objects)
    attributes = [thing for entry in _read(folder / "attributes.json") for thing in entry["attributes"]]
    assert any("attributes" not in thing for thing in attributes)
    assert any(thing.get("attributes") == [] for thing in attributes)
    assert any(" and " in value for thing in attributes for value in thing.get("attributes", []))


def test_the_two_versions_differ_as_the_real_ones_do(folder, older_folder):
    new, old = (_read(root / "relationships.json") for root in (folder, older_folder))
    ends = [
        [end for entry in read for r in entry["relationships"] for end in (r["subject"], r["object"])]
        for read in (new, old)
    ]
    assert all("name" in end and "names" not in end and "merged_object_ids" in end for end in ends[0])
    assert all("names" in end and "name" not in end and "merged_object_ids" not in end for end in ends[1])
    assert (folder / "object_alias.txt").exists()
    assert not (older_folder / "object_alias.txt").exists()
    assert [len(_read(folder / f"{name}.json")) for name in VISUAL_GENOME_FILES] == [100] * 7
    assert "id" in _read(folder / "region_descriptions.json")[0]
    assert "id" in _read(folder / "question_answers.json")[0]


def test_relationships_name_things_of_the_image_in_the_right_order(folder, scenes):
    predicates = _vocabulary(folder / "vocab/relations_vocab.txt")
    for entry in _read(folder / "relationships.json"):
        scene = scenes[entry["image_id"]]
        for relationship in entry["relationships"]:
            subject, target = (relationship[end]["object_id"] % 1000 for end in ("subject", "object"))
            predicate = predicates[_clean(relationship["predicate"])]
            assert (subject, predicate, target) in scene.relations
            a, b = scene.things[subject].box, scene.things[target].box
            holds = {
                "left of": a[2] <= b[0],
                "right of": a[0] >= b[2],
                "above": a[3] <= b[1],
                "below": a[1] >= b[3],
                "on": a[0] >= b[0] and a[2] <= b[2] and subject > target,
                "inside": a[0] >= b[0] and a[2] <= b[2],
                "in front of": subject > target and box_iou(a, b) > 0,
                "behind": subject < target and box_iou(a, b) > 0,
            }
            assert holds[predicate]


def test_split_files_have_the_original_lines(folder):
    seen = []
    for split in SPLITS:
        lines = (folder / f"splits/{split}.txt").read_text().splitlines()
        assert len(lines) == COUNTS[split]
        for line in lines:
            image, xml = line.split(" ")
            assert (folder / image).is_file()
            assert xml == f"xml/{Path(image).stem}.xml"
            seen.append(int(Path(image).stem))
    assert seen == list(range(1, 101))


def test_ids_are_unique(folder):
    for name, key, id_key in (
        ("objects", "objects", "object_id"),
        ("relationships", "relationships", "relationship_id"),
        ("region_descriptions", "regions", "region_id"),
        ("question_answers", "qas", "qa_id"),
    ):
        ids = [item[id_key] for entry in _read(folder / f"{name}.json") for item in entry[key]]
        assert len(ids) == len(set(ids)) > 100
    entries = _read(folder / "image_data.json")
    coco = [entry["coco_id"] for entry in entries if entry["coco_id"] is not None]
    assert len(coco) == len(set(coco)) == 88
    assert not set(coco) & {entry["image_id"] for entry in entries}


# VQA v2


def _vqa(root: Path, subset: str) -> list[tuple[str, dict]]:
    questions = _read(root / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json")
    annotations = _read(root / f"vqa/v2_mscoco_{subset}_annotations.json")
    assert questions["task_type"] == "Open-Ended"
    assert questions["data_subtype"] == annotations["data_subtype"] == subset
    texts = {question["question_id"]: question["question"] for question in questions["questions"]}
    assert len(texts) == len(questions["questions"]) == len(annotations["annotations"])
    return [(texts[annotation["question_id"]], annotation) for annotation in annotations["annotations"]]


def _things_called(scene: Scene, words: str) -> list[int]:
    """Returns the things that fit words such as "small red circle", "blue things" or "crosses"."""
    *values, noun = words.split()
    singular = {"cross": "cross", "crosses": "cross"}.get(noun, noun.removesuffix("s"))
    return [
        number
        for number, thing in enumerate(scene.things)
        if singular in ("thing", thing.shape) and set(values) <= {thing.size, thing.texture, thing.color}
    ]


def _the_one(scene: Scene, words: str) -> int:
    (found,) = _things_called(scene, words)
    return found


def _answer_from_scene(scene: Scene, text: str) -> str:
    if match := re.fullmatch(r"What color is the (.+)\?", text):
        return scene.things[_the_one(scene, match[1])].color
    if match := re.fullmatch(r"What pattern is on the (.+)\?", text):
        return scene.things[_the_one(scene, match[1])].texture
    if match := re.fullmatch(r"What is the (.+)\?", text):
        return scene.things[_the_one(scene, match[1])].shape
    if match := re.fullmatch(r"How many (.+) are (there|in the picture)\?", text):
        return str(len(_things_called(scene, match[1])))
    if match := re.fullmatch(r"Is there an? (.+) in the picture\?", text):
        return "yes" if _things_called(scene, match[1]) else "no"
    if match := re.fullmatch(r"Is the (.+) (to the left of|to the right of|above|below) the (.+)\?", text):
        a, b = (scene.things[_the_one(scene, words)].box for words in (match[1], match[3]))
        gap = {
            "to the left of": b[0] - a[2],
            "to the right of": a[0] - b[2],
            "above": b[1] - a[3],
            "below": a[1] - b[3],
        }
        opposite = {"to the left of": "to the right of", "above": "below"}
        opposite |= {other: one for one, other in opposite.items()}
        assert max(gap[match[2]], gap[opposite[match[2]]]) >= 0
        return "yes" if gap[match[2]] >= 0 else "no"
    match = re.fullmatch(r"Is the (.+) (\w+)\?", text)
    thing = scene.things[_the_one(scene, match[1])]
    return "yes" if match[2] in (thing.size, thing.texture) else "no"


def test_every_answer_is_true_of_the_image(folder, scenes):
    by_coco_id = {entry["coco_id"]: scenes[entry["image_id"]] for entry in _read(folder / "image_data.json")}
    kinds = Counter()
    for subset in ("train2014", "val2014", "test2015"):
        for text, annotation in _vqa(folder, subset):
            truth = annotation["multiple_choice_answer"]
            assert _answer_from_scene(by_coco_id[annotation["image_id"]], text) == truth
            answers = [answer["answer"] for answer in annotation["answers"]]
            assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
            assert answers.count(truth) >= 7
            assert {answer["answer_confidence"] for answer in annotation["answers"]} <= {"yes", "maybe", "no"}
            assert text.lower().startswith(annotation["question_type"])
            kinds[annotation["answer_type"]] += 1
            kinds["disagreed"] += answers.count(truth) < 10
    assert set(kinds) == {"yes/no", "number", "other", "disagreed"}
    assert min(kinds.values()) > 50


def test_words_alone_do_not_give_the_answers_away(folder):
    """A baseline knows the most frequent answer for the first three words, counted in the questions that it answers."""
    answers = defaultdict(Counter)
    for text, annotation in _vqa(folder, "train2014"):
        answers[" ".join(text.split()[:3])][annotation["multiple_choice_answer"]] += 1
    right = sum(max(counts.values()) for counts in answers.values())
    assert right / sum(sum(counts.values()) for counts in answers.values()) < 0.55


def test_visual_genome_answers_are_true_of_the_image(folder, scenes):
    for entry in _read(folder / "question_answers.json"):
        for qa in entry["qas"]:
            assert qa["answer"] == _answer_from_scene(scenes[entry["id"]], qa["question"]).capitalize() + "."


# Captions


def test_caption_files_agree_and_point_to_the_images(folder):
    karpathy = _read(folder / "captions/dataset_coco.json")["images"]
    images = {entry["coco_id"]: entry for entry in _read(folder / "image_data.json")}
    assert {image["split"] for image in karpathy} == {"train", "restval", "val", "test"}
    coco = {subset: COCO(str(folder / f"captions/captions_{subset}.json")) for subset in ("train2014", "val2014")}
    sentence_ids = []
    for position, image in enumerate(karpathy):
        assert image["imgid"] == position
        assert image["filepath"] == ("train2014" if image["split"] == "train" else "val2014")
        link = folder / image["filepath"] / image["filename"]
        url = images[image["cocoid"]]["url"]
        assert link.resolve() == (folder / "/".join(url.split("/")[-2:])).resolve()
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert len(image["sentences"]) == 5
        for sentence in image["sentences"]:
            assert sentence["tokens"] == sentence["raw"].lower().replace(",", "").replace(".", "").split()
        files = coco[image["filepath"]]
        captions = [files.anns[number]["caption"] for number in files.getAnnIds(imgIds=[image["cocoid"]])]
        assert captions == [sentence["raw"] for sentence in image["sentences"]]
        sentence_ids += image["sentids"]
    assert sentence_ids == list(range(5 * 88))
    for subset in ("train2014", "val2014", "test2015"):
        for _, annotation in _vqa(folder, subset):
            assert (folder / subset / f"COCO_{subset}_{annotation['image_id']:012d}.jpg").is_file()


# Flickr30k Entities


def test_marked_phrases_are_true_of_the_image_and_have_the_right_boxes(folder, scenes):
    numbers = ["zero", "one", "two", "three", "four", "five", "six"]
    shared = 0
    for entry in _read(folder / "image_data.json"):
        scene = scenes[entry["image_id"]]
        root = ElementTree.parse(folder / f"flickr30k_entities/Annotations/{entry['flickr_id']}.xml").getroot()
        assert root.find("filename").text == f"{entry['flickr_id']}.jpg"
        assert (folder / "flickr30k_images" / root.find("filename").text).is_file()
        boxes, unboxed = defaultdict(set), set()
        for node in root.iter("object"):
            names = [name.text for name in node.iter("name")]
            if node.find("bndbox") is None:
                unboxed.update(names)
                continue
            corners = [int(node.find(f"bndbox/{key}").text) for key in ("xmin", "ymin", "xmax", "ymax")]
            for name in names:
                boxes[name].add((corners[0] - 1, corners[1] - 1, corners[2], corners[3]))
        text = (folder / f"flickr30k_entities/Sentences/{entry['flickr_id']}.txt").read_text()
        assert len(text.splitlines()) == 5
        for chain, kinds, words in re.findall(r"\[/EN#(\d+)/([^ ]+) ([^\]]+)\]", text):
            if kinds in ("notvisual", "scene"):
                assert chain == "0" or chain in unboxed
                continue
            count, noun_phrase = words.split(" ", 1)
            found = _things_called(scene, noun_phrase)
            assert boxes[chain] == {scene.clipped_box(number) for number in found}
            assert len(found) == (1 if count in ("a", "an") else numbers.index(count))
            shared += len(found) > 1
    assert shared > 10
    for split in SPLITS:
        assert len((folder / f"flickr30k_entities/{split}.txt").read_text().splitlines()) == COUNTS[split]


# Making the data set


def test_an_interrupted_run_is_completed(folder, tmp_path, monkeypatch):
    root = tmp_path / "shapes"
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return compose_scene(*arguments)

    monkeypatch.setattr("bua.shapes.make.compose_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _make(root)
    assert not (root / "shapes.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in root.glob("VG_100K*/*.jpg")}
    assert len(kept) == 29
    _make(root)
    assert _digest(root) == _digest(folder)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_complete_folder_is_not_changed(tmp_path):
    arguments = {"num_train": 2, "num_val": 0, "num_test": 1, "processes": 1}
    root = tmp_path / "shapes"
    assert make_shapes(root, **arguments)
    (root / "annotations").mkdir()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not make_shapes(root, **arguments)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(InputError, match=r"shapes\.json: .*other arguments"):
        make_shapes(root, **(arguments | {"seed": 1}))
    (root / "shapes.json").unlink()
    os.mkfifo(root / "shapes.json")
    with pytest.raises(InputError, match=r"shapes\.json: .*other arguments"):
        make_shapes(root, **arguments)


def test_two_processes_do_not_draw_into_one_folder(tmp_path):
    arguments = {"num_train": 2, "num_val": 0, "num_test": 1, "processes": 1}
    with exclusive(tmp_path / "shapes"), pytest.raises(InputError, match=r"shapes: process .* is writing to it"):
        make_shapes(tmp_path / "shapes", **arguments)
    assert make_shapes(tmp_path / "shapes", **arguments)
    with exclusive(tmp_path / "shapes"):  # a complete folder is only looked at
        assert not make_shapes(tmp_path / "shapes", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_errors_name_bad_arguments(tmp_path):
    with pytest.raises(InputError, match=r"version: '1\.3' is not known; choose one of 1\.2, 1\.4"):
        make_shapes(tmp_path / "a", version="1.3")
    with pytest.raises(InputError, match="num_val: -1 is negative"):
        make_shapes(tmp_path / "a", num_val=-1)
    with pytest.raises(InputError, match="all are 0"):
        make_shapes(tmp_path / "a", num_train=0, num_val=0, num_test=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        make_shapes(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        make_shapes(tmp_path / "other")
    assert not (tmp_path / "a").exists()


def test_the_program_makes_a_data_set_once(tmp_path, capsys):
    tool = load_script("datasets/make_shapes.py")
    command = ["--output", str(tmp_path / "shapes"), "--train", "4", "--val", "1", "--test", "1", "--version", "1.2"]
    assert tool.main(command) == 0
    assert "6 images written" in capsys.readouterr().out
    assert tool.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert tool.main([*command, "--seed", "9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "datasets/make_shapes.py"), "--output", str(tmp_path / "x"), "--train", "-1"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: make_shapes: num_train")
