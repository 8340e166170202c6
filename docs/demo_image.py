#!/usr/bin/env python3
"""Makes docs/demo.png, the image in README.md, from the page of a demo: its table of scores and its first image.

    make demo-train && .venv/bin/python docs/demo_image.py output/demo-train/index.html

It needs Chromium. README.md's table of scores must be copied from the same page.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT, MARGIN = 1080, 2000, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="index.html of a demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("demo.png"), help="(%(default)s)")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"no browser found; install one of {', '.join(BROWSERS)}")
    page = args.page.read_text(encoding="utf-8")
    head, scores, article = (
        re.search(pattern, page, re.DOTALL)[0]
        for pattern in ("<head>.*?</head>", '<section id="scores">.*?</section>', "<article>.*?</article>")
    )
    gallery = f'<section><div class="gallery tasks">{article}</div></section>'
    style = "<style>main { padding: 24px; } section { margin: 0; }</style>"
    with tempfile.TemporaryDirectory() as folder:
        part, shot = Path(folder, "part.html"), Path(folder, "part.png")
        part.write_text(f"<!doctype html>{head}{style}<main>{scores}{gallery}</main>", encoding="utf-8")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", part.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True)
        image = cv2.imread(str(shot))
    rows = (image != image[-1, 0]).any(axis=(1, 2)).nonzero()[0]
    cv2.imwrite(str(args.output), image[max(0, rows[0] - MARGIN) : rows[-1] + MARGIN], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{args.output} shows {args.page}")


if __name__ == "__main__":
    main()
