"""The choices and defaults of options are those of the modules that implement them."""

import bua.captioning.official
import bua.captioning.scores
import bua.extraction.compare
import bua.features.readers
import bua.features.store
import bua.modeling.optimize
import bua.shapes.make
import bua.tasks.words
import bua.vqa.accuracy
import bua.vqa.answers
from bua import options


def test_choices_are_those_of_the_implementation():
    assert tuple(bua.features.store.FORMATS) == options.FORMATS
    assert tuple(bua.features.readers.READERS) == options.READERS
    assert tuple(bua.modeling.optimize.PRECISIONS) == options.PRECISIONS
    assert options.SHAPES_VERSIONS == bua.shapes.make.VERSIONS
    assert options.VQA_REVISIONS == bua.vqa.accuracy.REVISIONS
    assert options.CAPTION_METRICS == bua.captioning.scores.METRICS


def test_defaults_are_those_of_the_implementation():
    bounds = bua.extraction.compare.Bounds()
    assert (
        bounds.box_distance,
        bounds.cosine,
        bounds.label_agreement,
    ) == (options.BOX_DISTANCE, options.COSINE, options.LABEL_AGREEMENT)
    assert options.ANSWER_MIN_COUNT == bua.vqa.answers.MIN_COUNT
    assert options.QUESTION_LENGTH == bua.tasks.words.QUESTION_LENGTH
    assert options.PHRASES_PER_CAPTION == bua.captioning.official.PHRASES
