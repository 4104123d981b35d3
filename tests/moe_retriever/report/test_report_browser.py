"""The report in a browser: layout at phone and desktop width, and text contrast in light and dark mode."""

import re
from pathlib import Path

import pytest

from moe_retriever.report import Inputs, write_report
from mrpipe import Store
from mrpipe.cli.main import main
from tests.moe_retriever.report.browser import probe, violations

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
  cut: shown.filter(e => e.matches("table, .forest") && e.getBoundingClientRect().right > innerWidth + 1).map(e =>
    e.innerText.slice(0, 40)),
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


@pytest.fixture(scope="module")
def page(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    small = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "cnn_width=0.05", "n_experts=2"]
    runs = []
    # Methods that the clinical section shows at first, and others.
    for method, options in {"moe_retriever": small, "logistic": [], "majority": [], "late_fusion": small[:-1]}.items():
        runs.append(folder / "runs" / "toy" / method / "seed0")
        command = ["train", "--store", str(store.path), "--mask", str(mask_file), "--method", method, "--quiet"]
        main([*command, "--out", str(runs[-1]), *(["--set", *options] if options else [])])
    write_report(Inputs(runs=runs, stores=[store.path]), folder / "index.html")
    return folder / "index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_fits_with_sufficient_contrast(page: Path, width: int, dark: bool, tmp_path: Path) -> None:
    said = probe(page.read_text(), PROBE, width=width, folder=tmp_path, dark=dark)
    assert said["width"] == width
    assert said["dark"] == dark
    assert said["page"] <= width
    assert said["wide"] == []
    assert said["texts"] > 100
    assert said["faint"] == []
    none, after, rows = said["found"]
    assert none == 0
    assert after == rows > 0


@pytest.mark.parametrize("width", [390, 1300])
def test_axe_finds_no_violations(page: Path, width: int, tmp_path: Path) -> None:
    assert violations(page.read_text(), width=width, folder=tmp_path) == []


def test_axe_finds_an_image_without_a_label(page: Path, tmp_path: Path) -> None:
    unlabelled = page.read_text().replace("</main>", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></main>')
    assert "image-alt" in " ".join(violations(unlabelled, width=1300, folder=tmp_path))


def test_print_shows_whole_tables(page: Path, tmp_path: Path) -> None:
    """On paper, no table is wider than the page, and nothing scrolls."""
    text = re.sub(r"@media print", "@media all", page.read_text()).replace(
        "@media (max-width: 40rem)", "@media not all"
    )
    said = probe(text, PROBE, width=720, folder=tmp_path)
    assert said["cut"] == []
    assert said["page"] <= 720
