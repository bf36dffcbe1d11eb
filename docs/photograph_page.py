# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Takes a picture of a page of attention maps in Chromium, with the pointer on a cell.

python -m ea_hf.visualization output/map_flow "God created the heavens and the earth." --vanilla --output output/maps.html
python docs/photograph_page.py output/maps.html --view "layer=1&head=1&scale=map" \
    --output docs/visualization.png
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--cell", type=int, nargs=2, metavar=("ROW", "COLUMN"), default=(6, 5), help="From 1.")
    parser.add_argument("--view", default="", help="What stands behind the # of the page's link to a view.")
    parser.add_argument("--output", type=Path, default=Path("docs/visualization.png"))
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("There is no Chromium on the PATH; install it, on Debian with `apt-get install chromium`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 700}, color_scheme="light")
        page.goto(f"{args.page.resolve().as_uri()}#{args.view}")
        page.wait_for_selector("html[data-ready]")
        canvas = page.locator("#shown canvas")
        box, (rows, columns) = canvas.bounding_box(), canvas.evaluate("canvas => [canvas.height, canvas.width]")
        row, column = args.cell
        page.mouse.move(
            box["x"] + (column - 0.5) * box["width"] / columns, box["y"] + (row - 0.5) * box["height"] / rows
        )
        page.screenshot(path=args.output)
        browser.close()
    print(f"Took {args.output}")


if __name__ == "__main__":
    main()
