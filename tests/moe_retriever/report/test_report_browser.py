"""The report in a browser: layout at phone and desktop width, and text contrast in light and dark mode."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from moe_retriever.report import Inputs, write_report
from mrpipe import Store
from mrpipe.cli.main import main

pytestmark = pytest.mark.slow

# Opens all sections and records elements wider than the window and the contrast of each text with its background.
PROBE = """<script>
for (const part of document.querySelectorAll("details")) part.open = true;
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
function behind(e) {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > .9) return c;
  }
  return [255, 255, 255];
}
const all = [...document.querySelectorAll("body *")];
const shown = all.filter(e => !e.closest("svg, script, .skip, .hidden") && e.getClientRects().length);
const texts = shown.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
const faint = texts.map(e => {
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 30)];
}).filter(([ratio]) => ratio < 4.5);
const wide = shown.filter(e => !e.parentElement.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1);
document.documentElement.dataset.probe = JSON.stringify({
  width: innerWidth, page: document.documentElement.scrollWidth, texts: texts.length, faint,
  wide: wide.map(e => e.tagName + "." + e.className), dark: matchMedia("(prefers-color-scheme: dark)").matches,
  found: (() => {
    const box = document.querySelector(".search input");
    const rows = [...box.closest("details").querySelectorAll("tbody tr")];
    box.value = "no feature is called this"; box.dispatchEvent(new Event("input"));
    const none = rows.filter(r => !r.hidden).length;
    box.value = ""; box.dispatchEvent(new Event("input"));
    return [none, rows.filter(r => !r.hidden).length, rows.length];
  })(),
});
</script>"""
# A window of headless Chromium is at least 500 pixels wide; a frame can have the width of a phone.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<iframe id="frame" width="{width}" height="2000"
style="border: 0" srcdoc="{page}"></iframe><script>
document.getElementById("frame").onload = event =>
  document.documentElement.dataset.probe = event.target.contentDocument.documentElement.dataset.probe;
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def page(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    out = folder / "runs" / "toy" / "moe_retriever" / "seed0"
    small = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "cnn_width=0.05", "n_experts=2"]
    main(["train", "--store", str(store.path), "--mask", str(mask_file), "--quiet", "--out", str(out), "--set", *small])
    write_report(Inputs(runs=[out], stores=[store.path]), folder / "index.html")
    return folder / "index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_fits_with_sufficient_contrast(
    page: Path, browser: str, width: int, dark: bool, tmp_path: Path
) -> None:
    probed = page.read_text().replace("</body>", f"{PROBE}</body>")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(probed)))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,2000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        f"file://{frame}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    match = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert said["width"] == width
    assert said["dark"] == dark
    assert said["page"] <= width
    assert said["wide"] == []
    assert said["texts"] > 100
    assert said["faint"] == []
    none, after, rows = said["found"]
    assert none == 0
    assert after == rows > 0
