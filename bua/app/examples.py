"""The examples of the page: drawn images of Shapes, each with a question and a sentence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.shapes.scene import compose_scene, draw_scene
from bua.shapes.text import ask_questions, plain_text, write_sentence
from bua.visualization.draw import save_image

# Other images than those that the models were trained on, which have the random seed 0, and those of the demo.
SEED = 4
# The number of things in an image of the examples.
FEWEST, MOST = 3, 6
# The number of kinds of questions.
KINDS = 7


@dataclass
class Example:
    """A drawn image.

    Attributes:
        path: The file of the image.
        question: A question about the image.
        sentence: A sentence about things in the image.
    """

    path: Path
    question: str
    sentence: str


def draw_examples(folder: Path, count: int = 6) -> list[Example]:
    """Draws images into a folder. The same count always gives the same images."""
    rng = np.random.default_rng(SEED)
    examples: list[Example] = []
    while len(examples) < count:
        scene = compose_scene(rng)
        if FEWEST <= len(scene.things) <= MOST and scene.width > scene.height:
            path = folder / f"shapes_{len(examples) + 1}.png"
            save_image(path, draw_scene(scene))
            # One question of each kind, as far as the image allows. Each example takes another kind.
            questions = ask_questions(scene, KINDS, rng)
            question = questions[len(examples) % len(questions)].text
            examples.append(Example(path, question, plain_text(write_sentence(scene, rng))))
    return examples
