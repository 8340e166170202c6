"""Generates phrases, captions and questions with answers for a Shapes scene. All of them are true of the image."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bua.shapes.scene import COLORS, SHAPES, TEXTURES, Scene

T = TypeVar("T")

PLURALS = {"cross": "crosses", "fish": "fish"}
NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
PREDICATE_PHRASES = {
    "left of": ["left of", "to the left of"],
    "right of": ["right of", "to the right of"],
    "above": ["above", "over"],
    "below": ["below", "under"],
    "on": ["on", "on top of"],
    "inside": ["inside", "in"],
    "in front of": ["in front of"],
    "behind": ["behind"],
}
# The generated texts say "picture". Another word would change the bytes that a random seed gives, and would be missing
# from the vocabularies of checkpoints that were trained before.
THE_IMAGE = "the picture"
# How often a kind of question is tried for a scene before it is the next one's turn.
ATTEMPTS = 8


@dataclass
class Phrase:
    """A noun phrase.

    Attributes:
        words: The phrase, such as "a red circle".
        things: Indices into ``Scene.things`` of the things that the phrase names.
    """

    words: str
    things: list[int]


@dataclass
class Question:
    """A question about a scene.

    Attributes:
        text: The question.
        answer: The right answer in VQA v2's normal form (lower case, digits).
        question_type: First words of the question, by which VQA v2 groups questions.
        answer_type: "yes/no", "number" or "other".
        things: Indices of the things that the question names.
        alternatives: Plausible wrong answers.
    """

    text: str
    answer: str
    question_type: str
    answer_type: str
    things: list[int]
    alternatives: list[str]


def describe(scene: Scene, index: int, rng: np.random.Generator) -> Phrase:
    """Returns a noun phrase that fits one thing only.

    If there is no such phrase, returns a plural, such as "two red circles", for all things that the phrase fits.
    """
    thing = scene.things[index]
    attributes = tuple(value for value in thing.attributes if rng.random() < 0.55)
    found = scene.find(thing.shape, attributes)
    if len(found) > 1:
        attributes = tuple(thing.attributes)
        found = scene.find(thing.shape, attributes)
    if len(found) == 1:
        return Phrase(with_article(" ".join((*attributes, thing.shape))), found)
    return Phrase(" ".join((NUMBER_WORDS[len(found)], *attributes, plural(thing.shape))), found)


def write_sentence(scene: Scene, rng: np.random.Generator) -> list[Phrase | str]:
    """Returns a caption as a list of noun phrases and the words between them, which ``plain_text`` joins."""
    count = len(scene.things)
    if scene.relations and rng.random() < 0.65:
        subject, predicate, target = scene.relations[rng.integers(len(scene.relations))]
        first, second = describe(scene, subject, rng), describe(scene, target, rng)
        if len(first.things) == len(second.things) == 1:
            words = _pick(PREDICATE_PHRASES[predicate], rng)
            verb = _pick(["", "is "], rng)
            return [first, f"{verb}{words}", second, "."]
    chosen = rng.permutation(count)[: int(rng.integers(1, 4))]
    phrases: list[Phrase] = []
    for index in chosen:
        phrase = describe(scene, int(index), rng)
        if not any(set(phrase.things) & set(other.things) for other in phrases):
            phrases.append(phrase)
    start: list[Phrase | str] = _pick([[], ["There is" if _singular(phrases[0]) else "There are"]], rng)
    listed: list[Phrase | str] = [phrases[0]]
    for position, phrase in enumerate(phrases[1:], start=1):
        listed += ["and" if position == len(phrases) - 1 else ",", phrase]
    end = _pick([["."], [f"in {THE_IMAGE}", "."]], rng)
    return start + listed + end


def plain_text(sentence: list[Phrase | str]) -> str:
    """Returns the sentence with normal spelling, such as "A red circle is left of a star."."""
    text = " ".join(part.words if isinstance(part, Phrase) else part for part in sentence)
    text = text.replace(" ,", ",").replace(" .", ".")
    return text[0].upper() + text[1:]


def ask_questions(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Returns up to ``count`` different questions, with nearly equal shares of the seven kinds.

    The kinds take turns in random order, those that fit the fewest scenes first. A kind that finds no question, as when
    all things with a texture are of one shape, is tried ``ATTEMPTS`` times. The words of a question alone do not reveal
    its answer.
    """
    rare = [_ask_relation, _ask_texture]
    common = [_ask_color, _ask_count, _ask_presence, _ask_shape, _ask_attribute]
    kinds = [kinds[index] for kinds in (rare, common) for index in rng.permutation(len(kinds))]
    questions: dict[str, Question] = {}
    for turn in range(3 * count):
        ask = kinds[turn % len(kinds)]
        for _ in range(ATTEMPTS):
            question = ask(scene, rng)
            if question is not None and question.text not in questions:
                questions[question.text] = question
                break
        if len(questions) == count:
            break
    return list(questions.values())


def with_article(words: str) -> str:
    """Returns words after "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(shape: str) -> str:
    """Returns the plural of a shape's name."""
    return PLURALS.get(shape, shape + "s")


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = [i for i, thing in enumerate(scene.things) if thing.color != "gray" and len(scene.find(thing.shape)) == 1]
    if not unique:
        return None
    index = _pick(unique, rng)
    thing = scene.things[index]
    text = f"What color is the {thing.shape}?"
    return Question(text, thing.color, "what color is the", "other", [index], _others(COLORS, thing.color))


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    by_answer: dict[int, list[tuple[str, list[int]]]] = {
        len(scene.things): [("things", list(range(len(scene.things))))]
    }
    for shape in SHAPES:
        found = scene.find(shape)
        by_answer.setdefault(len(found), []).append((plural(shape), found))
    for color in COLORS:
        found = scene.find(None, (color,))
        by_answer.setdefault(len(found), []).append((f"{color} things", found))
    # Most shapes are in an image once or not at all. Drawing the answer first makes it hard to guess.
    answer = _pick(sorted(by_answer), rng)
    words, found = _pick(by_answer[answer], rng)
    near = [str(value) for value in (answer - 1, answer + 1) if value >= 0]
    text = _pick([f"How many {words} are there?", f"How many {words} are in {THE_IMAGE}?"], rng)
    return Question(text, str(answer), "how many", "number", found, near)


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    colored = [i for i, thing in enumerate(scene.things) if thing.color != "gray"]
    if not colored:
        return None
    thing = scene.things[_pick(colored, rng)]
    shape, color = thing.shape, thing.color
    if rng.random() < 0.5:
        # If possible, the wrong colour is that of another thing in the image. A model that knows only which shapes and
        # which colours are in the image then cannot answer.
        others = [other for other in scene.things if other.shape != shape and other.color not in ("gray", color)]
        color = _pick(others, rng).color if others else _pick(_others(COLORS, color), rng)
    found = scene.find(shape, (color,))
    answer = "yes" if found else "no"
    text = f"Is there {with_article(color)} {shape} in {THE_IMAGE}?"
    return Question(text, answer, f"is there {with_article(color).split()[0]}", "yes/no", found, _opposite(answer))


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    beside = [r for r in scene.relations if r[1] in ("left of", "right of", "above", "below")]
    if not beside:
        return None
    subject, predicate, target = _pick(beside, rng)
    first, second = describe(scene, subject, rng), describe(scene, target, rng)
    if len(first.things) > 1 or len(second.things) > 1:
        return None
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    answer = _pick(["yes", "no"], rng)
    asked = predicate if answer == "yes" else opposite[predicate]
    words = {"left of": "to the left of", "right of": "to the right of"}.get(asked, asked)
    text = f"Is {_definite(first)} {words} {_definite(second)}?"
    return Question(text, answer, "is the", "yes/no", [subject, target], _opposite(answer))


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    described = []
    for thing in scene.things:
        if thing.color == "gray":
            continue
        for values in ((thing.color,), (thing.size, thing.color), (thing.texture, thing.color)):
            attributes = [value for value in values if value is not None]
            found = scene.find(None, attributes) if len(attributes) == len(values) else []
            if len(found) == 1:
                described.append((" ".join(attributes), found))
    if not described:
        return None
    words, found = _pick(described, rng)
    shape = scene.things[found[0]].shape
    return Question(f"What is the {words} thing?", shape, "what is the", "other", found, _others(SHAPES, shape))


def _ask_attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    if len(scene.find(thing.shape)) > 1:
        return None
    asked = _pick(["small", "large", *TEXTURES], rng)
    true_values = [value for value in (thing.size, thing.texture) if value is not None]
    if true_values and rng.random() < 0.5:
        asked = _pick(true_values, rng)
    answer = "yes" if asked in true_values else "no"
    return Question(f"Is the {thing.shape} {asked}?", answer, "is the", "yes/no", [index], _opposite(answer))


def _ask_texture(scene: Scene, rng: np.random.Generator) -> Question | None:
    textured = [
        (index, thing.shape, thing.texture)
        for index, thing in enumerate(scene.things)
        if thing.texture and len(scene.find(thing.shape)) == 1
    ]
    if not textured:
        return None
    index, shape, texture = _pick(textured, rng)
    text = f"What pattern is on the {shape}?"
    return Question(text, texture, "what", "other", [index], _others(TEXTURES, texture))


def _definite(phrase: Phrase) -> str:
    return "the " + phrase.words.split(" ", 1)[1]


def _singular(phrase: Phrase) -> bool:
    return len(phrase.things) == 1


def _opposite(answer: str) -> list[str]:
    return ["no" if answer == "yes" else "yes"]


def _others(values: list[str], one: str) -> list[str]:
    return [value for value in values if value != one]


def _pick(values: list[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]
