"""Take the picture of the page that the README shows, anew: the sample checkpoint, in a real Chromium.

python -m tests.data.take_screenshot [FILE]    # default: the committed picture
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import spectrum
from tests.helpers.browser import browser, open_page
from tests.helpers.paths import ROOT, TINY_LLAMA

PICTURE = ROOT / "tests/data/pictures/page.png"
LAYER = "model.layers.1.mlp.up_proj"  # whose details are shown
SIZE = 1120, 1010


def main() -> None:
    """Scan the sample, and take the picture."""
    picture = Path(sys.argv[1] if len(sys.argv) > 1 else PICTURE).resolve()
    with tempfile.TemporaryDirectory() as scratch, browser() as driver:
        os.chdir(scratch)
        shutil.copytree(TINY_LLAMA, "org/model")
        selection = spectrum.select(spectrum.scan("org/model", show_progress=False), 25)
        driver.set_window_size(*SIZE)
        open_page(driver, selection.plot("scores.html"))
        driver.execute_script("location.hash = arguments[0]; scrollTo(0, 0)", f"layer={LAYER}")
        driver.execute_script("scrollTo(0, 0)")
        driver.save_screenshot(str(picture))
    print(picture)


if __name__ == "__main__":
    main()
