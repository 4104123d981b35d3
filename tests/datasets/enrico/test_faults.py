"""Damaged Enrico exports: all errors are reported together, with file and column, and exit code 3."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mrpipe.datasets.enrico import DATASET
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.simulate.export import EnricoSimulation, simulate_export
from mrpipe.errors import DataError, shape


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("enrico")
    for form in ("zip", "unpacked"):
        options = EnricoSimulation(n_screens=24, scale=0.15, zipped=form == "zip")
        simulate_export(folder / form, folder / f"{form}.truth", options)
    return {form: folder / form for form in ("zip", "unpacked")}


@pytest.fixture
def unpacked(exports: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(exports["unpacked"], tmp_path / "raw")


@pytest.fixture
def zipped(exports: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(exports["zip"], tmp_path / "raw")


def faults_of(raw: Path, options: EnricoOptions | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        DATASET.check(raw, options or EnricoOptions())
    assert caught.value.exit_code == 3
    assert str(raw.parent) not in str(caught.value)
    return caught.value


def ids_of(raw: Path) -> list[str]:
    return [line.split(",")[0] for line in (raw / "design_topics.csv").read_text().splitlines()[1:]]


def replace(path: Path, old: str, new: str, count: int = -1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_intact_export_passes_and_lists_its_files(exports: dict[str, Path]) -> None:
    for form, raw in exports.items():
        checked = DATASET.check(raw, EnricoOptions())
        assert all(f.is_file() and raw in f.parents for f in checked.files)
        assert len(set(checked.files)) == len(checked.files)
        folders = 4 if form == "zip" else 24 * 4 - 2
        assert len(checked.files) == 4 + folders
        assert any("50105, 50109" in note for note in checked.notes)
        assert any("landscape" in note for note in checked.notes)
        assert any("24 screens" in note for note in checked.notes)


Damage = Callable[[Path], None]
TABLE_DAMAGE: dict[str, tuple[Damage, str, str | None, str]] = {
    "missing": (lambda r: (r / "design_topics.csv").unlink(), "design_topics.csv", None, "no such file"),
    "empty": (lambda r: os.truncate(r / "design_topics.csv", 0), "design_topics.csv", None, "empty file"),
    "header only": (
        lambda r: (r / "design_topics.csv").write_text("screen_id,topic\n") and None,
        "design_topics.csv",
        None,
        "without rows",
    ),
    "renamed column": (
        lambda r: replace(r / "design_topics.csv", "topic", "class", 1),
        "design_topics.csv",
        "topic",
        "screen_id, class",
    ),
    "unknown topic": (
        lambda r: replace(r / "design_topics.csv", ",list", ",dashboard", 1),
        "design_topics.csv",
        "topic",
        "dashboard",
    ),
    "float ids": (
        lambda r: replace(r / "design_topics.csv", ",list", ".0,list", 1),
        "design_topics.csv",
        "screen_id",
        ".0'",
    ),
    "renamed issue column": (lambda r: replace(r / "issues.csv", "severity", "sev"), "issues.csv", "severity", "sev"),
    "unknown severity": (lambda r: replace(r / "issues.csv", ",high", ",awful", 1), "issues.csv", "severity", "awful"),
    "unknown source": (
        lambda r: replace(r / "issues.csv", ",wireframe,", ",sketch,", 1),
        "issues.csv",
        "source",
        "sketch",
    ),
    "colour that is none": (
        lambda r: replace(r / "component_legend.json", "#", "?", 1),
        "component_legend.json",
        None,
        "unknown color",
    ),
    "legend without hex": (
        lambda r: replace(r / "component_legend.json", '"hex"', '"hx"', 1),
        "component_legend.json",
        None,
        "KeyError",
    ),
    "cut legend": (lambda r: os.truncate(r / "icon_legend.json", 30), "icon_legend.json", None, "line "),
}


@pytest.mark.parametrize("name", TABLE_DAMAGE)
def test_damaged_tables(name: str, unpacked: Path) -> None:
    damage, file, column, found = TABLE_DAMAGE[name]
    damage(unpacked)
    (fault,) = faults_of(unpacked).faults
    assert fault.file.endswith(file)
    assert fault.column == column
    assert found in fault.found


def test_duplicate_ids_report_the_line_of_the_second(unpacked: Path) -> None:
    ids = ids_of(unpacked)
    with (unpacked / "design_topics.csv").open("a") as handle:
        handle.write(f"{ids[2]},list\n")
    (fault,) = faults_of(unpacked).faults
    assert (fault.file, fault.column, fault.line, fault.row) == ("design_topics.csv", "screen_id", 26, None)
    assert ids[2] in fault.found


@pytest.mark.parametrize("form", ["zipped", "unpacked"])
def test_many_missing_images_are_counted_and_the_first_are_listed(form: str, request: pytest.FixtureRequest) -> None:
    raw: Path = request.getfixturevalue(form)
    with (raw / "design_topics.csv").open("a") as handle:
        handle.writelines(f"{90000 + i},list\n" for i in range(7))
    faults = faults_of(raw).faults
    assert [f.file for f in faults] == [f"{n}{'.zip' * (form == 'zipped')}" for n in ("screenshots", "wireframes")]
    for fault in faults:
        assert fault.found.startswith("7 of 31 screens have no ")
        assert fault.found.endswith("(22.6%): 90000, 90001, 90002, 90003, 90004 and 2 more")
    checked = DATASET.check(raw, EnricoOptions(max_unmatched=1.0))
    assert {m: len(ids) for m, ids in checked.observed.items()} == {"screenshot": 24, "wireframe": 24}


def test_screenshots_in_another_form_count_as_missing(unpacked: Path) -> None:
    for screen in ids_of(unpacked)[:7]:
        shot = unpacked / "screenshots" / f"{screen}.jpg"
        shot.rename(shot.with_suffix(".webp"))
    with pytest.raises(DataError, match="7 of 24 screens have no screenshot"):
        DATASET.check(unpacked, EnricoOptions())


def test_a_missing_screenshot_costs_its_modality_only(unpacked: Path) -> None:
    first, second, *_ = [i for i in ids_of(unpacked) if (unpacked / "wireframes" / f"{i}.png").exists()]
    (unpacked / "screenshots" / f"{first}.jpg").unlink()
    (unpacked / "screenshots" / f"{second}.jpg").rename(unpacked / "screenshots" / f"0{second}.jpg")
    checked = DATASET.check(unpacked, EnricoOptions())
    assert any(
        n.endswith(f"; 1 differs only in leading zeros, such as {shape(second)} instead of {shape(f'0{second}')}")
        for n in checked.notes
    )
    assert set(ids_of(unpacked)) - set(checked.observed["screenshot"]) == {first, second}
    samples = DATASET.cohort(unpacked, EnricoOptions()).samples
    assert samples.filter(sample_id=first).select("screen_width", "wireframe_source").row(0) == (None, "png")
    features = DATASET.modalities["screenshot"].read(unpacked, samples, EnricoOptions(image_size=(16, 8)))
    assert {i for b in features.batches for i in b["sample_id"].to_pylist()} == set(checked.observed["screenshot"])
    assert features.tried is not None
    failed = features.tried().filter(status="failed")
    assert sorted(failed["sample_id"]) == sorted([first, second])
    assert failed["reason"].unique().to_list() == ["no screenshot file"]


def test_a_hierarchy_that_draws_nothing_gives_no_wireframe(unpacked: Path) -> None:
    """Rico's raw hierarchies have classes but no labels; a blank picture would count as observed."""
    path = unpacked / "hierarchies" / "50105.json"
    replace(path, '"componentLabel"', '"component"')
    checked = DATASET.check(unpacked, EnricoOptions())
    assert "1 hierarchies draw nothing and give no wireframe: 50105" in checked.notes
    assert "50105" not in checked.observed["wireframe"].to_list()
    assert "50109" in checked.observed["wireframe"].to_list()
    samples = DATASET.cohort(unpacked, EnricoOptions()).samples
    features = DATASET.modalities["wireframe"].read(unpacked, samples, EnricoOptions(image_size=(16, 8)))
    assert "50105" not in {i for b in features.batches for i in b["sample_id"].to_pylist()}
    assert features.tried is not None
    (reason,) = features.tried().filter(sample_id="50105")["reason"]
    assert reason == "no image, and the hierarchy draws nothing"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e308", '"12"', "null", "true, 1"])
def test_invalid_bounds_are_reported_with_their_node(unpacked: Path, value: str) -> None:
    first = ids_of(unpacked)[0]
    tree = {"bounds": [0, 0, 1440, 2560], "children": [{}, {"children": [{"bounds": [0, 0, 9, 9]}]}]}
    text = json.dumps(tree).replace("[0, 0, 9, 9]", f"[{value}, 0, 9, 9]")
    (unpacked / "hierarchies" / f"{first}.json").write_text(text)
    (fault,) = faults_of(unpacked).faults
    assert (fault.file, fault.column) == (f"hierarchies/{first}.json", "root.children[1].children[0].bounds")
    assert "four finite numbers" in fault.expected


def test_swapped_bounds_latin1_and_repeated_keys_of_hierarchies(unpacked: Path) -> None:
    first, second, third, *_ = ids_of(unpacked)
    box = '{"componentLabel": "Text", "bounds": [%s]}'
    whole = box % "0, 0, 700, 700"
    swapped = box % "90, 0, 10, 50"
    folder = unpacked / "hierarchies"
    (folder / f"{first}.json").write_text(f'{{"children": [{whole}, {swapped}]}}')
    (folder / f"{second}.json").write_bytes(f'{{"text": "café", "children": [{whole}]}}'.encode("latin-1"))
    (unpacked / "metadata" / f"{second}.json").write_bytes('{"app_id": "café"}'.encode("latin-1"))
    notes = DATASET.check(unpacked, EnricoOptions()).notes
    assert any(n.startswith("1 nodes have their right") and f"{first}.json root.children[1]" in n for n in notes)
    assert f"1 hierarchies are not UTF-8 and were read as Latin-1: {second}" in notes
    assert f"1 metadata files are not UTF-8 and were read as Latin-1: {second}" in notes
    assert DATASET.cohort(unpacked, EnricoOptions()).samples.filter(sample_id=second)["app_id"].item() == "café"
    (folder / f"{third}.json").write_text('{"children": [], "children": [1]}')
    (fault,) = faults_of(unpacked).faults
    assert "'children' occurs twice" in fault.found


def test_an_archive_beside_its_folder_is_unused(exports: dict[str, Path], unpacked: Path) -> None:
    shutil.copy(exports["zip"] / "wireframes.zip", unpacked)
    (unpacked / "textButton_legend.json").write_text("{}")
    unused = DATASET.check(unpacked, EnricoOptions()).unused
    assert sorted(unused) == ["textButton_legend.json", "wireframes.zip"]
    assert "unpacked folder" in unused["wireframes.zip"]


@pytest.mark.parametrize("folder", ["screenshots", "wireframes", "hierarchies", "metadata"])
@pytest.mark.parametrize("size", [0, 0.5, 0.99])
def test_truncated_archives(folder: str, size: float, zipped: Path) -> None:
    path = zipped / f"{folder}.zip"
    os.truncate(path, int(path.stat().st_size * size))
    (fault,) = faults_of(zipped).faults
    assert fault.file == f"{folder}.zip"
    assert "zip archive" in fault.expected


@pytest.mark.parametrize("folder", ["screenshots", "wireframes"])
def test_truncated_empty_and_invalid_images(folder: str, unpacked: Path) -> None:
    damaged = sorted((unpacked / folder).iterdir())[:3]
    os.truncate(damaged[0], damaged[0].stat().st_size * 2 // 3)
    os.truncate(damaged[1], 0)
    damaged[2].write_text("<html>404</html>")
    error = faults_of(unpacked)
    assert [f.file for f in error.faults] == [f"{folder}/{path.name}" for path in _in_table_order(unpacked, damaged)]
    assert all("image" in f.expected for f in error.faults)


def _in_table_order(raw: Path, damaged: list[Path]) -> list[Path]:
    order = ids_of(raw)
    return sorted(damaged, key=lambda path: order.index(path.stem))


def test_invalid_json_and_hierarchy_of_another_screen(unpacked: Path) -> None:
    first, second, *_ = ids_of(unpacked)
    os.truncate(unpacked / "hierarchies" / f"{first}.json", 100)
    replace(unpacked / "hierarchies" / f"{second}.json", "{", f'{{"screen_id": {first}, ', 1)
    (unpacked / "metadata" / f"{first}.json").write_text("[1, 2]")
    faults = faults_of(unpacked).faults
    assert [f.file for f in faults] == [
        f"hierarchies/{first}.json",
        f"hierarchies/{second}.json",
        f"metadata/{first}.json",
    ]
    assert f"screen {second}" in faults[1].expected
    assert first in faults[1].found


def test_errors_of_all_kinds_are_reported_together(unpacked: Path) -> None:
    ids = ids_of(unpacked)
    replace(unpacked / "issues.csv", "severity", "sev")
    os.truncate(unpacked / "screenshots" / f"{ids[1]}.jpg", 200)
    os.truncate(unpacked / "hierarchies" / f"{ids[2]}.json", 10)
    error = faults_of(unpacked)
    files = [f.file for f in error.faults]
    assert files == ["issues.csv", f"screenshots/{ids[1]}.jpg", f"hierarchies/{ids[2]}.json"]
    assert "3 errors" in str(error)


def test_number_of_listed_damaged_files_is_limited(unpacked: Path) -> None:
    for path in (unpacked / "screenshots").iterdir():
        os.truncate(path, 0)
    faults = faults_of(unpacked).faults
    assert len(faults) == 21
    assert "4 more" in faults[-1].found


def test_missing_folders_and_their_substitutes(unpacked: Path) -> None:
    shutil.rmtree(unpacked / "metadata")
    assert DATASET.check(unpacked, EnricoOptions())
    shutil.rmtree(unpacked / "wireframes")
    checked = DATASET.check(unpacked, EnricoOptions())
    assert any(n.startswith("24 wireframes will be drawn") for n in checked.notes)
    (fault,) = faults_of(unpacked, EnricoOptions(render_missing_wireframes=False)).faults
    assert "wireframes" in fault.file
    shutil.rmtree(unpacked / "hierarchies")
    shutil.rmtree(unpacked / "screenshots")
    assert [f.file.split("/")[-1] for f in faults_of(unpacked).faults] == ["screenshots", "wireframes"]


def test_files_and_issues_without_a_screen_are_notes(unpacked: Path) -> None:
    source = next((unpacked / "screenshots").iterdir())
    shutil.copy(source, unpacked / "screenshots" / "99999.jpg")
    (unpacked / "hierarchies" / "notes.txt").write_text("hello")
    with (unpacked / "issues.csv").open("a") as handle:
        handle.write("99998,wireframe,complete mismatch,high\n")
    notes = " | ".join(DATASET.check(unpacked, EnricoOptions()).notes)
    for text in ("99999.jpg", "notes.txt", "99998"):
        assert text in notes
    assert len(DATASET.cohort(unpacked, EnricoOptions()).samples) == 24


def test_image_size_must_be_two_numbers(unpacked: Path) -> None:
    for size in ((256,), (256, 0), (256, 128, 3)):
        (fault,) = faults_of(unpacked, EnricoOptions(image_size=size)).faults
        assert fault.column == "image_size"


def test_topics_are_case_insensitive_and_accept_the_name_in_the_readme(unpacked: Path) -> None:
    before = DATASET.cohort(unpacked, EnricoOptions()).labels["topic"]
    table = unpacked / "design_topics.csv"
    table.write_text(re.sub(r",calculator\b", ",Dialer", table.read_text()).replace(",list", ",List"))
    assert DATASET.cohort(unpacked, EnricoOptions()).labels["topic"].equals(before)
