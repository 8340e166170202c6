"""Runs the demo's models on test images, and draws the results for the page."""

from collections.abc import Iterator

import numpy as np

from bua.captioning.cider import CiderD
from bua.captioning.dataset import CaptionDataset
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
from bua.modeling.region_detector import RegionDetector
from bua.structures import Regions
from bua.visualization.draw import class_colors, draw_attention
from bua.visualization.gallery import AnswerPanel, CaptionPanel, GalleryImage, PhrasePanel, WordPanel
from bua.visualization.labels import draw_labelled, labelled_annotations, labelled_detections
from bua.visualization.strip import best_shares, draw_words
from bua.visualization.visualize import evenly
from bua.vqa.inference import answer_question, load_vqa
from bua.vqa.official import load_annotations, load_questions, rows_of

# Number of images on the page.
SIZE = 12
# Least probability of an object that is drawn.
THRESHOLD = 0.5
# Number of questions per image.
QUESTIONS = 2
# Number of regions that are outlined for a question.
REGIONS_OUTLINED = 3


def draw_gallery(paths: DemoPaths, detector: RegionDetector, test: DetectionDataset) -> list[GalleryImage]:
    """Returns the results for ``SIZE`` images that all tasks have.

    The images are spread evenly over the test split, so that the page does not show only good results.
    """
    records = {record["image_id"]: record for record in iter_records(paths.shapes / "image_data.json", False)}
    usable = [index for index in range(len(test)) if records[test.image_ids[index]]["coco_id"] is not None]
    images = []
    answerer, captioner, grounder = _Answerer(paths), _Captioner(paths), _Grounder(paths)
    features = open_features(paths.features("visual_genome"))
    for number, position in enumerate(evenly(usable, SIZE)):
        index = usable[position]
        image_id = int(test.image_ids[index])
        record = records[image_id]
        image, regions = read_image(test.file_name(index)), features[image_id]
        found = labelled_detections(
            detector.infer([detector.prepare(image)])[0],
            test.objects.names,
            test.attribute_names.names,
            THRESHOLD,
            convention=detector.convention,
        )
        annotated = labelled_annotations(test, index)
        images.append(
            GalleryImage(
                title=f"Image {image_id}",
                predicted=draw_labelled(image, found),
                predicted_labels=found.labels,
                annotated=draw_labelled(image, annotated),
                annotated_labels=annotated.labels,
                questions=list(answerer.panels(image, regions, record["coco_id"], number)),
                caption=captioner.panel(image, regions, record["coco_id"]),
                phrases=grounder.panel(image, regions, record["flickr_id"]),
            )
        )
    return images


class _Answerer:
    """Answers some of the test questions about an image."""

    def __init__(self, paths: DemoPaths):
        self.model = load_vqa(paths.model("vqa", "updown"), paths.device)
        self.asked = load_questions(paths.shapes / "vqa" / "v2_OpenEnded_mscoco_test2015_questions.json")
        annotations = load_annotations(paths.shapes / ANNOTATIONS)
        rows = rows_of(annotations.question_ids, self.asked.question_ids, annotations.name, self.asked.name)
        self.references = [annotations.frequent[row] for row in rows.tolist()]

    def panels(self, image: np.ndarray, regions: Regions, coco_id: int, number: int) -> Iterator[AnswerPanel]:
        about = np.flatnonzero(self.asked.image_ids == coco_id)
        # The questions about each image are in the same order of kinds. From image to image, other kinds are chosen.
        for row in np.roll(about, -QUESTIONS * number)[:QUESTIONS].tolist():
            answers, attention = answer_question(self.model, regions, self.asked.texts[row], top=3)
            yield AnswerPanel(
                question=self.asked.texts[row],
                answers=[(answer.text, answer.score) for answer in answers],
                reference=self.references[row],
                drawn=draw_attention(image, regions.boxes, attention, shown=REGIONS_OUTLINED),
            )


class _Captioner:
    """Captions an image, and scores the caption against the reference captions."""

    def __init__(self, paths: DemoPaths):
        self.model = load_captioner(paths.model("captioning", "updown"), paths.device)
        dataset = CaptionDataset.load(paths.data("captioning"), "test")
        self.vocabulary, self.references = dataset.vocabulary, dataset.references()
        self.cider = CiderD(
            {
                image_id: [[self.vocabulary.words[word] for word in caption] for caption in captions]
                for image_id, captions in self.references.items()
            }
        )

    def panel(self, image: np.ndarray, regions: Regions, coco_id: int) -> CaptionPanel:
        best = caption_regions([self.model], regions)[0]
        drawn = draw_words(image, regions.boxes, best.attention)
        return CaptionPanel(
            text=best.text,
            words=[WordPanel(*panel) for panel in zip(best.words, best_shares(best.attention), drawn)],
            references=[self.vocabulary.decode(caption) for caption in self.references[coco_id]],
            cider=float(self.cider.score([best.words], [coco_id])[0]),
        )


class _Grounder:
    """Grounds the sentence about an image that has the most phrases."""

    def __init__(self, paths: DemoPaths):
        self.model = load_grounding(paths.model("grounding", "ban"), paths.device)
        self.data = GroundingDataset.load(paths.data("grounding"), "test")

    def panel(self, image: np.ndarray, regions: Regions, flickr_id: int) -> PhrasePanel | None:
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
        return PhrasePanel(
            words=[word.strip("[]") for word in words],
            spans=[(phrase.start, phrase.end) for phrase in phrases],
            colors=class_colors(range(len(phrases))),
            right=right,
            drawn=draw_phrases(image, phrases),
        )
