"""The page in headless Chromium."""

import cv2
import pytest

pytest.importorskip("gradio", reason="Gradio is not installed")

from chromium import Browser

from bua.app.examples import draw_examples
from bua.app.page import build_page, launch_page

PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    page = build_page(models, tmp_path_factory.mktemp("app"))
    yield launch_page(page, "127.0.0.1", None, wait=False)
    page.close(verbose=False)


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_takes_an_upload_and_answers(address, browser, tmp_path, width):
    browser.resize(width, 900)
    browser.call("Page.navigate", url=address)
    # The first example is shown at once, with all results.
    browser.wait_for("document.querySelector('#objects img') && document.querySelector('#sentence-result img')")
    assert "shapes_1.png" in browser.evaluate("document.querySelector('#objects').innerText")

    path = tmp_path / "mine.png"
    cv2.imwrite(str(path), cv2.imread(str(draw_examples(tmp_path, 2)[1].path)))
    browser.choose_file("#upload input[type=file]", path)
    browser.wait_for("document.querySelector('#objects').innerText.includes('mine.png')")

    browser.write("#question textarea, #question input", "What color is the <b>circle</b> ${1 + 1} {{2}}?")
    browser.evaluate("document.querySelector('#question-button').click()")
    browser.wait_for("document.querySelector('#question-result img')?.alt.includes('${1 + 1} {{2}}')")
    assert browser.evaluate("document.querySelectorAll('#question-result .bars li').length") == 5

    browser.write("#sentence textarea, #sentence input", "above")
    browser.evaluate("document.querySelector('#sentence-button').click()")
    browser.wait_for("document.querySelector('#sentence-result').innerText.includes('no phrase in it')")

    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    others = [one for one in browser.requests if not one.startswith((address, "data:", "blob:"))]
    assert others == []


def test_a_box_is_highlighted_with_its_text(address, browser):
    browser.resize(DESK, 900)
    browser.call("Page.navigate", url=address)
    browser.wait_for("document.querySelectorAll('#sentence-result .box').length > 1")
    shown = "[...document.querySelectorAll('#sentence-result .box')].map(box => getComputedStyle(box).opacity)"
    assert set(browser.evaluate(shown)) == {"1"}
    # An image that is shown later moves what is below it away from the mouse.
    browser.wait_for(f"{shown}[1] == 0.25", lambda: browser.point_at("#sentence-result .chips li:nth-child(1)"))
    assert browser.evaluate(shown)[0] == "1"
    # By keyboard, or with a finger, it is the focus.
    browser.point_at("h1")
    browser.evaluate("document.querySelector('#sentence-result mark:nth-of-type(2)').focus()")
    browser.wait_for(f"{shown}[0] == 0.25")
    assert browser.evaluate(shown)[1] == "1"


def test_a_damaged_file_is_explained_and_the_next_upload_works(address, browser, tmp_path):
    browser.resize(DESK, 900)
    browser.call("Page.navigate", url=address)
    browser.wait_for("document.querySelector('#caption .said')")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 is no image")
    browser.choose_file("#upload input[type=file]", broken)
    browser.wait_for("document.querySelector('#objects .message')?.innerText.includes('broken.jpg')")
    assert "Traceback" not in browser.evaluate("document.body.innerText")
    browser.wait_for("document.querySelector('#upload input[type=file]')")
    browser.choose_file("#upload input[type=file]", draw_examples(tmp_path, 3)[2].path)
    browser.wait_for("document.querySelector('#objects').innerText.includes('shapes_3.png')")
    assert browser.complaints == []
