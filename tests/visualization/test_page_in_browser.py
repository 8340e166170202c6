"""The page as a browser shows it."""

import html
import json

import pytest
from chromium import Browser
from test_report import full_report, image_of_all_tasks

from bua.visualization.report import write_report

PHONE, DESK = 390, 1280
# Shows the page in a frame of some width, with and without the annotations, and measures what is shown.
PROBE = """<!doctype html><body style="margin:0"><iframe width="WIDTH" height="900" srcdoc="PAGE"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = async () => {
  const page = frame.contentDocument, found = {};
  const images = [...page.images];
  images.forEach(image => image.loading = "eager");
  await Promise.allSettled(images.map(image => image.decode()));
  for (const view of ["plain", "annotations"]) {
    const choice = page.getElementById(view);
    if (choice) choice.checked = true;
    found[view] = {
      images: images.map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
      width: page.documentElement.scrollWidth,
    };
  }
  document.body.dataset.found = JSON.stringify(found);
};
</script></body>"""


def shown(tmp_path, page, width):
    """Returns what the probe measures of a page, and the errors on the browser's console."""
    probe = PROBE.replace("WIDTH", str(width)).replace("PAGE", html.escape(page))
    (tmp_path / "probe.html").write_text(probe, encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=f"file://{tmp_path / 'probe.html'}")
        browser.wait_for("document.body?.dataset.found")
        return json.loads(browser.evaluate("document.body.dataset.found")), browser.complaints
    finally:
        browser.close()


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_image_is_shown_and_nothing_is_wider_than_the_screen(tmp_path, width):
    write_report(tmp_path / "index.html", full_report(gallery=[image_of_all_tasks()] * 2))
    found, console = shown(tmp_path, (tmp_path / "index.html").read_text(encoding="utf-8"), width)
    assert console == []
    for view, hidden in (("plain", {1, 9}), ("annotations", set())):
        seen = found[view]
        assert [number for number, (natural, _) in enumerate(seen["images"]) if not natural] == []
        assert {number for number, (_, drawn) in enumerate(seen["images"]) if not drawn} == hidden
        assert all(drawn > 100 for number, (_, drawn) in enumerate(seen["images"]) if number not in hidden)
        assert seen["width"] <= width


def test_the_probe_sees_what_is_wrong(tmp_path):
    page = '<div style="width:500px">wide</div><script>missing()</script>'
    found, console = shown(tmp_path, page, PHONE)
    assert found["plain"]["width"] > PHONE
    assert len(console) == 1
    assert "missing is not defined" in console[0]
