"""The images of the page: what each model makes of them, drawn."""

from collections.abc import Iterator

import numpy as np

from bua.captioning.inference import caption_regions, load_captioner
from bua.demo.tasks import ANNOTATIONS, DemoPaths
from bua.detection.annotations import DetectionDataset
from bua.features import open_features
from bua.grounding.dataset import GroundingDataset
from bua.grounding.from_image import draw_phrases
from bua.grounding.inference import ground_phrases, load_grounding
from bua.grounding.recall import hits
from bua.io.images import read_image
from bua.io.json_records import iter_records
from bua.modeling import Detector
from bua.structures import Regions
from bua.visualization.draw import class_colors, draw_attention
from bua.visualization.gallery import Answered, Captioned, GalleryImage, Grounded
from bua.visualization.labels import draw_labelled, labelled_annotations, labelled_detections
from bua.visualization.strip import draw_strip
from bua.visualization.visualize import evenly
from bua.vqa.inference import answer_question, load_vqa
from bua.vqa.official import load_annotations, load_questions, rows_of

SIZE = 12
# Of an object's probability.
THRESHOLD = 0.5
QUESTIONS = 2
STRIP_COLUMNS = 4
REGIONS_LIT = 3


def draw_gallery(paths: DemoPaths, detector: Detector, test: DetectionDataset) -> list[GalleryImage]:
    """``SIZE`` images evenly over the test split, so that the page shows the middling with the good; of those that
    all tasks have."""
    records = {record["image_id"]: record for record in iter_records(paths.shapes / "image_data.json", False)}
    usable = [index for index in range(len(test)) if records[test.image_ids[index]]["coco_id"] is not None]
    images = []
    drawers = _Questions(paths), _Captions(paths), _Phrases(paths)
    features = open_features(paths.features("visual_genome"))
    for number, place_of in enumerate(evenly(usable, SIZE)):
        index = usable[place_of]
        image_id = int(test.image_ids[index])
        image, regions = read_image(test.file_name(index)), features[image_id]
        found = labelled_detections(
            detector.predict([image])[0], test.objects, test.attribute_names, THRESHOLD, convention=detector.convention
        )
        annotated = labelled_annotations(test, index)
        questions, caption, phrases = drawers
        images.append(
            GalleryImage(
                title=f"Image {image_id}",
                predicted=draw_labelled(image, found),
                predicted_labels=found.labels,
                annotated=draw_labelled(image, annotated),
                annotated_labels=annotated.labels,
                questions=list(questions(image, regions, records[image_id]["coco_id"], number)),
                caption=caption(image, regions),
                phrases=phrases(image, regions, records[image_id]["flickr_id"]),
            )
        )
    return images


class _Questions:
    """Answers some of the questions that people asked about an image."""

    def __init__(self, paths: DemoPaths):
        self.model = load_vqa(paths.model("vqa", "updown"), paths.device)
        self.asked = load_questions(paths.shapes / "vqa" / "v2_OpenEnded_mscoco_test2015_questions.json")
        truth = load_annotations(paths.shapes / ANNOTATIONS)
        rows = rows_of(truth.question_ids, self.asked.question_ids, truth.name, self.asked.name)
        self.truth = [truth.frequent[row] for row in rows.tolist()]

    def __call__(self, image: np.ndarray, regions: Regions, coco_id: int, number: int) -> Iterator[Answered]:
        about = np.flatnonzero(self.asked.image_ids == coco_id)
        # Others from image to image: an image's questions always come in the same order of kinds.
        for row in np.roll(about, -QUESTIONS * number)[:QUESTIONS].tolist():
            answers, attention = answer_question(self.model, regions, self.asked.texts[row], top=3)
            yield Answered(
                question=self.asked.texts[row],
                answers=[(answer.text, answer.score) for answer in answers],
                truth=self.truth[row],
                drawn=draw_attention(image, regions.boxes, attention, shown=REGIONS_LIT),
            )


class _Captions:
    def __init__(self, paths: DemoPaths):
        self.model = load_captioner(paths.model("captioning", "updown"), paths.device)

    def __call__(self, image: np.ndarray, regions: Regions) -> Captioned:
        best = caption_regions([self.model], regions)[0]
        return Captioned(best.text, draw_strip(image, regions.boxes, best.words, best.attention, columns=STRIP_COLUMNS))


class _Phrases:
    """Grounds the sentence about an image that has most phrases."""

    def __init__(self, paths: DemoPaths):
        self.model = load_grounding(paths.model("grounding", "ban"), paths.device)
        self.data = GroundingDataset.load(paths.data("grounding"), "test")

    def __call__(self, image: np.ndarray, regions: Regions, flickr_id: int) -> Grounded | None:
        about = np.flatnonzero(self.data.image_ids == flickr_id)
        if not len(about):
            return None
        sentence = about[np.diff(self.data.phrase_offsets)[about].argmax()]
        first, end = self.data.phrase_offsets[sentence : sentence + 2].tolist()
        words = [
            self.data.vocabulary.words[word] for word in self.data.words[sentence] if word < len(self.data.vocabulary)
        ]
        spans = self.data.spans[first:end].tolist()
        for start, stop in spans:
            words[start], words[stop - 1] = f"[{words[start]}", f"{words[stop - 1]}]"
        phrases = ground_phrases(self.model, regions, " ".join(words))
        right = [
            bool(hits(phrase.box[None], self.data.boxes_of(number))[0])
            for phrase, number in zip(phrases, range(first, end))
        ]
        return Grounded(
            words=[word.strip("[]") for word in words],
            spans=[(phrase.start, phrase.end) for phrase in phrases],
            colors=class_colors(range(len(phrases))),
            right=right,
            drawn=draw_phrases(image, phrases),
        )
