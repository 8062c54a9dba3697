"""Draw tests/bench/report.png, the picture of a report in README.md: train on drawn photos, then photograph the page.

python tests/bench/report_picture.py            # needs Chromium and playwright
python tests/bench/report_picture.py --keep DIR # the run stays there
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_name("report.png")
MAX_BYTES = 150_000
SIDE = {"width": 1100, "height": 1100}


def job(folder: Path, name: str, *words: object) -> None:
    """Run one of the project's jobs in a folder, silently; the page shows its paths, so they are relative."""
    command = [sys.executable, f"jobs/{name}.py", *map(str, words), "--log", "quiet"]
    subprocess.run(command, check=True, cwd=folder)


def photograph(page: Path) -> bytes:
    """The top of a page as Chromium shows it, a PNG."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        tab = browser.new_page(viewport=SIDE)
        tab.goto(page.resolve().as_uri())
        content = tab.screenshot()
        browser.close()
    return content


def compress(content: bytes) -> bytes:
    """The same picture in as many colours as leave it below ``MAX_BYTES``."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for colors in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < MAX_BYTES:
            break
    return buffer.getvalue()


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--keep", type=Path, help="folder for data and run; default: a temporary one")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        (folder / "jobs").symlink_to(ROOT / "jobs")
        job(folder, "prepare", "sample", "--output-dir", "photos", "--train", 10, "--valid", 8, "--test", 8)
        job(folder, "train", "--data-dir", "photos", "--output-dir", "runs/photos", "--epochs", 6)
        PICTURE.write_bytes(compress(photograph(folder / "runs" / "photos" / "report.html")))
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
