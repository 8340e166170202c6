"""answer, caption and ground on a GPU: the output of the CPU, from the image to the drawing."""

import cv2
import numpy as np
import pytest
from script_loading import load_script

from bua.checkpoint import save_checkpoint

SLIM = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RPN.CONV_DIMS", "[8]"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"),
]
FEATURE_DIM = 128


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("image") / "things.png"
    pixels = np.full((90, 120, 3), 200, np.uint8)
    pixels[20:60, 30:80] = (0, 0, 255)
    pixels[50:80, 70:110] = (0, 255, 0)
    cv2.imwrite(str(path), pixels)
    return str(path)


def arguments_of_answer(tests, image: str, folder) -> list[str]:
    return ["--image", image, "--question", "What is it?", "--vqa", tests.save_model(folder / "vqa.pth", FEATURE_DIM)]


def arguments_of_ground(tests, image: str, folder) -> list[str]:
    model = tests.save_model(folder / "ban.pth", FEATURE_DIM)
    return ["--image", image, "--sentence", tests.SENTENCE, "--grounding", model]


def arguments_of_caption(tests, image: str, folder) -> list[str]:
    captioner = tests.make_captioner(FEATURE_DIM)
    save_checkpoint(folder / "captioner.pth", model=captioner.model.state_dict(), **captioner.describe())
    return ["--captioner", str(folder / "captioner.pth"), "--beam", "2", "--image", image]


ARGUMENTS = {"answer": arguments_of_answer, "caption": arguments_of_caption, "ground": arguments_of_ground}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_output_is_that_of_the_cpu(name, image, tmp_path, capsys):
    # The models of random weights are those of the tests on the CPU.
    tests, main = load_script(f"tests/tools/test_{name}.py"), load_script(f"tools/{name}.py").main
    printed = {}
    for device in ("cpu", "cuda"):
        output = tmp_path / device if name == "caption" else tmp_path / device / "drawing.png"
        options = ["--config-file", str(tests.ROOT / "configs" / "shapes.yaml"), "--detector", "random"]
        options += ["--min-boxes", "4", "--max-boxes", "8", "--output", str(output)]
        given = [*SLIM, "MODEL.DEVICE", device, *options, *ARGUMENTS[name](tests, image, tmp_path)]
        assert main(given) == 0
        printed[device] = capsys.readouterr().out.replace(str(tmp_path / device), "")
        assert [*(tmp_path / device).iterdir()]
    assert len(printed["cpu"].splitlines()) > 1
    assert printed["cuda"] == printed["cpu"]
