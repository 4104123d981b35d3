"""Headless Chromium for tests of pages: the DOM of a page in a frame of a given width, after its scripts have run."""

import html
import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# A window of headless Chromium is at least 500 pixels wide; a frame can have the width of a phone.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<iframe id="frame" width="{width}" height="2000"
style="border: 0" srcdoc="{page}"></iframe><script>
setInterval(() => {{
  const probe = document.getElementById("frame").contentDocument.documentElement.dataset.probe;
  if (probe) document.documentElement.dataset.probe = probe;
}}, 50);
</script>"""
AXE = """<script>{axe}</script><script>
for (const part of document.querySelectorAll("details")) part.open = true;
axe.run(document).then(found => {{
  document.documentElement.dataset.probe = JSON.stringify({{
    version: axe.version, passes: found.passes.length, violations: found.violations.map(v =>
      v.id + " (" + v.impact + "): " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(" | ")),
  }});
}});
</script>"""


def chromium() -> str:
    """Path of Chromium; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine (apt-get install chromium)")


def axe_script() -> str:
    """The source of axe-core; skips the test where it is not installed."""
    for package in ("axe_playwright_python", "axe_core_python"):
        if (spec := find_spec(package)) and spec.origin:
            return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    pytest.skip("no axe-core (pip install axe-core-python)")


def probe(page: str, script: str, *, width: int, folder: Path, dark: bool = False) -> dict[str, Any]:
    """What the script writes to `data-probe` of the page's root element, as JSON.

    Args:
        page: HTML of the page.
        width: of the window in pixels.
        folder: for temporary files.
    """
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page.replace("</body>", f"{script}</body>"))))
    command = [
        *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000", "--virtual-time-budget=60000"),
        *(f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"file://{frame}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r'<html[^>]* data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(html.unescape(found[1]))
    return said


def violations(page: str, *, width: int, folder: Path) -> list[str]:
    """Violations that axe-core finds with all sections open."""
    said = probe(page, AXE.format(axe=axe_script()), width=width, folder=folder)
    assert said["passes"] > 10
    found: list[str] = said["violations"]
    return found
