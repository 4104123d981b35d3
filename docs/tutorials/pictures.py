"""Pictures of the documentation, from a run of the tutorial on a hospital's tables: needs Chromium.

From the root of a clone: PYTHONPATH=.:model python docs/tutorials/pictures.py
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from tests.docs.tutorial import PROJECT, Tutorial

PICTURES = PROJECT / "docs" / "pictures"
LARGEST_BYTES = 100_000


def screenshot(page: Path, name: str, width: int, height: int) -> None:
    """Save the first screen of a page (HTML or SVG) as docs/pictures/<name>.webp."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    shot = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    subprocess.run([browser, *options, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
    target = PICTURES / f"{name}.webp"
    picture = Image.open(shot).convert("RGB")
    if page.suffix == ".svg":
        edge = ImageChops.difference(picture, Image.new("RGB", picture.size, picture.getpixel((width - 1, height - 1))))
        picture = picture.crop(edge.getbbox())
    picture.save(target, quality=82, method=6)
    if target.stat().st_size > LARGEST_BYTES:
        raise SystemExit(f"{target}: {target.stat().st_size} bytes, more than {LARGEST_BYTES}")
    print(target.relative_to(PROJECT), target.stat().st_size)


def main() -> None:
    """Run the tutorial and take its pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tutorial = Tutorial(Path(scratch) / "here")
        tutorial.run("hospital.md")
        report = tutorial.folder / "report"
        screenshot(report / "index.html", "report", 1300, 900)
        (availability,) = sorted(report.glob("figures/*-availability.svg"))[:1]
        screenshot(availability, "availability", 1200, 1200)


if __name__ == "__main__":
    main()
