"""Enrico: images, features, cohort and splits."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from mrpipe.datasets.enrico import DATASET
from mrpipe.datasets.enrico.cohort import build_cohort, multibench_folds, parse_metadata
from mrpipe.datasets.enrico.hierarchy import parse_hierarchy
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.simulate.export import LANDSCAPE, EnricoSimulation, simulate_export
from mrpipe.datasets.enrico.tables import TOPICS, read_issues
from mrpipe.datasets.images import decode, image_size, to_array
from mrpipe.errors import DataError
from mrpipe.store.splits import grouped_stratified

SIMULATION = EnricoSimulation(n_screens=90, scale=0.3, seed=3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enrico")
    simulate_export(folder / "raw", folder / "raw.truth", SIMULATION)
    return folder / "raw"


def read(raw: Path, modality: str, options: EnricoOptions | None = None) -> dict[str, np.ndarray]:
    """Map sample ids to (3, H, W) arrays, from all batches."""
    options = options or EnricoOptions()
    features = DATASET.modalities[modality].read(raw, build_cohort(raw, options).samples, options)
    table = pa.Table.from_batches(list(features.batches), features.modality.arrow_schema())
    pixels = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, *features.modality.shape)
    ids = table["sample_id"].to_pylist()
    assert ids == sorted(ids)
    return dict(zip(ids, pixels, strict=True))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


# Images --------------------------------------------------------------------------------------------------------------


def test_order_of_channels_rows_and_columns() -> None:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (54, 96))
    for colour_name, corner in (("red", (0, 0)), ("lime", (27, 0)), ("blue", (0, 48)), ("white", (27, 48))):
        image.paste(ImageColor.getrgb(colour_name), (*corner, corner[0] + 27, corner[1] + 48))
    x = to_array(decode(encoded(image), "x"), (32, 16))
    assert x.shape == (3, 32, 16)
    assert x.dtype == np.uint8
    corners = {(0, 0): (255, 0, 0), (0, -1): (0, 255, 0), (-1, 0): (0, 0, 255), (-1, -1): (255, 255, 255)}
    for (row, column), rgb in corners.items():
        assert tuple(x[:, row, column].tolist()) == rgb


def test_resize_is_an_antialiased_triangle_filter() -> None:
    """Reduced by 4, each output pixel is the triangle-weighted mean of the 8 x 8 pixels around it."""
    rng = np.random.Generator(np.random.PCG64(0))
    source = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
    x = to_array(Image.fromarray(source), (16, 8))
    weights = 1 - np.abs(np.arange(8) - 3.5) / 4
    weights /= weights.sum()
    for row, column in ((1, 1), (7, 3), (14, 6)):
        window = source[4 * row - 2 : 4 * row + 6, 4 * column - 2 : 4 * column + 6].astype(float)
        expected = np.einsum("i,j,ijc->c", weights, weights, window)
        assert np.abs(x[:, row, column] - expected).max() <= 1


def test_transparent_pixels_become_black_as_in_multibench() -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    x = to_array(decode(encoded(image), "x"), (8, 8))
    assert x[:, 0, 0].tolist() == [0, 0, 0]
    assert x[:, 0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_png_modes_keep_their_brightness(mode: str) -> None:
    """A dark left half and a bright right half; Pillow alone clips 16-bit values at 255, which is white."""
    grey = np.repeat(np.array([[0, 255]], dtype=np.uint8), 16, axis=0).repeat(8, axis=1)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    x = to_array(decode(encoded(image), "x"), (16, 16))
    assert np.array_equal(x, np.broadcast_to(grey, x.shape))
    mid = Image.fromarray(np.full((16, 16), 0x4040, dtype=np.uint16))
    assert (to_array(decode(encoded(mid), "x"), (16, 16)) == 0x40).all()


def test_palette_with_transparency_and_cmyk() -> None:
    palette = Image.new("RGB", (16, 16), (200, 30, 60)).convert("P", palette=Image.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    assert to_array(decode(buffer.getvalue(), "x"), (16, 16))[:, 0, 0].tolist() == [200, 30, 60]
    cmyk = to_array(decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x"), (16, 16))
    assert cmyk[0].min() > 200
    assert cmyk[1:].max() < 50


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (96, 54), "white")
    image.paste("red", (0, 0, 48, 54))  # the left half, at the top after a quarter turn clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    assert image_size(buffer.getvalue(), "x") == (54, 96)
    x = to_array(decode(buffer.getvalue(), "x"), (96, 54))
    assert x[1, 5].max() < 50
    assert x[1, -5].min() > 200


def test_an_image_of_a_few_pixels_is_an_error() -> None:
    for function in (decode, image_size):
        with pytest.raises(DataError, match="1 x 40 pixels"):
            function(encoded(Image.new("RGB", (1, 40))), "x")


def test_landscape_is_squeezed_or_rotated_counter_clockwise() -> None:
    image = Image.new("RGB", (96, 54), "white")
    image.paste("red", (90, 0, 96, 6))  # top right; top left after the counter-clockwise rotation
    squeezed, rotated = (to_array(image, (96, 54), rotate_landscape=r) for r in (False, True))
    assert squeezed[:, 0, -1].tolist() == [255, 0, 0]
    assert rotated[:, 0, 0].tolist() == [255, 0, 0]
    upright = Image.new("RGB", (54, 96), "white")
    assert np.array_equal(to_array(upright, (96, 54)), to_array(upright, (96, 54), rotate_landscape=True))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", b"<html>404</html>"])
def test_invalid_image_is_an_error_that_names_the_file(data: bytes) -> None:
    for function in (decode, image_size):
        with pytest.raises(DataError, match=r"screenshots/1\.jpg.*image"):
            function(data, "screenshots/1.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_image_is_an_error_and_trailing_bytes_are_not(kind: str) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    data = encoded(Image.fromarray(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)), kind)
    assert image_size(data, "x") == (40, 60)
    assert image_size(data + b"\0" * 100, "x") == (40, 60)
    for function in (decode, image_size):
        with pytest.raises(DataError, match=r"x: expected a complete"):
            function(data[: len(data) * 2 // 3], "x")


def test_all_forms_of_empty_metadata() -> None:
    for data in (b"", b" \n", b"{}", b"[]", b"null"):
        assert parse_metadata(data, "x") == ({}, True)
    with pytest.raises(DataError, match="object"):
        parse_metadata(b"[1]", "x")


def test_rico_files_have_their_root_inside_activity() -> None:
    tree = {"bounds": [0, 0, 1440, 2560], "children": [{"componentLabel": "Text", "bounds": [0, 0, 90, 90]}]}
    plain = parse_hierarchy(json.dumps(tree).encode(), "x")
    nested = parse_hierarchy(json.dumps({"activity_name": "a", "activity": {"root": tree}}).encode(), "x")
    assert plain == nested
    assert nested.draws
    for content in ({"activity": None}, {"activity": {"root": None}}):
        with pytest.raises(DataError, match="root node"):
            parse_hierarchy(json.dumps(content).encode(), "x")
    for bounds in ([0, 0, 0, 90], [90, 90, 0, 0], [1440, 0, 1500, 90], [-9, -9, 0, 0]):
        tree["children"] = [{"componentLabel": "Text", "bounds": bounds}]
        assert not parse_hierarchy(json.dumps(tree).encode(), "x").draws


def test_other_suffixes_of_images(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    options = EnricoOptions(image_size=(16, 8))
    first = build_cohort(raw, options).samples["sample_id"][0]
    (copy / "screenshots" / f"{first}.jpg").rename(copy / "screenshots" / f"{first}.JPEG")
    (copy / "wireframes" / f"{first}.png").rename(copy / "wireframes" / f"{first}.PNG")
    assert build_cohort(copy, options).samples.equals(build_cohort(raw, options).samples)
    for modality in DATASET.modalities:
        assert np.array_equal(read(copy, modality, options)[first], read(raw, modality, options)[first])


# The modalities ------------------------------------------------------------------------------------------------------


def test_archives_and_folders_give_the_same_features(raw: Path, tmp_path: Path) -> None:
    for name in ("screenshots", "wireframes", "hierarchies", "metadata"):
        shutil.make_archive(str(tmp_path / name), "zip", raw, name)
    for table in raw.glob("*.*"):
        shutil.copy(table, tmp_path)
    options = EnricoOptions(image_size=(64, 32))
    assert build_cohort(raw, options).samples.equals(build_cohort(tmp_path, options).samples)
    for modality in DATASET.modalities:
        unpacked, zipped = read(raw, modality, options), read(tmp_path, modality, options)
        assert list(unpacked) == list(zipped)
        assert all(np.array_equal(unpacked[i], zipped[i]) for i in unpacked)


def test_an_export_in_a_folder_of_its_own_is_found(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "datasets" / "enrico_corpus")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    options = EnricoOptions(image_size=(64, 32))
    assert build_cohort(raw, options).samples.equals(build_cohort(tmp_path, options).samples)
    for modality in DATASET.modalities:
        assert list(read(tmp_path, modality, options)) == list(read(raw, modality, options))
    checked, expected = (DATASET.check(folder, options) for folder in (tmp_path, raw))
    assert (len(checked.files), checked.unused) == (len(expected.files), expected.unused)


def test_features_match_multibench(raw: Path) -> None:
    screens, wireframes = read(raw, "screenshot"), read(raw, "wireframe")
    for screen_id in list(screens)[::17]:
        for pixels, file in ((screens, f"screenshots/{screen_id}.jpg"), (wireframes, f"wireframes/{screen_id}.png")):
            with Image.open(raw / file) as image:
                expected = np.asarray(image.convert("RGB").resize((128, 256), Image.Resampling.BILINEAR))
            assert pixels[screen_id].shape == (3, 256, 128)
            assert np.array_equal(pixels[screen_id], expected.transpose(2, 0, 1))


def test_rendered_wireframes_equal_the_images_except_for_listed_issues(raw: Path) -> None:
    options = EnricoOptions(wireframes="render", image_size=(64, 32))
    published, drawn = read(raw, "wireframe", EnricoOptions(image_size=(64, 32))), read(raw, "wireframe", options)
    issues = set(read_issues(raw)["screen_id"])
    model = json.loads((raw.with_name("raw.truth") / "model.json").read_text())
    unequal = {i for i in drawn if not np.array_equal(published[i], drawn[i])}
    assert unequal
    assert unequal <= issues & set(model["wireframes_with_issues"])
    assert len(drawn) == len(published) == SIMULATION.n_screens


def test_missing_wireframes_are_rendered_or_absent(raw: Path) -> None:
    default = build_cohort(raw, EnricoOptions()).samples
    assert default.filter(wireframe_source="rendered")["sample_id"].to_list() == ["50105", "50109"]
    assert default["wireframe_source"].null_count() == 0
    options = EnricoOptions(render_missing_wireframes=False, image_size=(16, 8))
    absent = build_cohort(raw, options).samples
    assert absent.filter(pl.col("wireframe_source").is_null())["sample_id"].to_list() == ["50105", "50109"]
    wireframes = read(raw, "wireframe", options)
    assert set(read(raw, "screenshot", options)) - set(wireframes) == {"50105", "50109"}


def test_image_listed_as_not_available_is_not_read(raw: Path, tmp_path: Path) -> None:
    """Some copies have a damaged file in its place (MultiBench: "the wireframe files are corrupted")."""
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    (copy / "wireframes" / "50105.png").write_bytes(b"damaged")
    assert DATASET.check(copy, EnricoOptions())
    assert build_cohort(copy, EnricoOptions()).samples.equals(build_cohort(raw, EnricoOptions()).samples)


def test_batches_are_small_and_dictionary_has_one_row_per_channel(raw: Path) -> None:
    options = EnricoOptions(image_size=(16, 8))
    features = DATASET.modalities["screenshot"].read(raw, build_cohort(raw, options).samples, options)
    assert [b.num_rows for b in features.batches] == [64, 26]
    assert features.dictionary["name"].to_list() == [f"screenshot.{c}" for c in ("red", "green", "blue")]
    assert features.dictionary["n_observed"].to_list() == [90] * 3


def test_damaged_screenshot_at_ingest_names_the_file(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    options = EnricoOptions(image_size=(16, 8))
    samples = build_cohort(copy, options).samples
    damaged = copy / "screenshots" / f"{samples['sample_id'][40]}.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    with pytest.raises(DataError, match=rf"screenshots/{damaged.name}"):
        list(DATASET.modalities["screenshot"].read(copy, samples, options).batches)


# Cohort and splits ---------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 300))
@settings(deadline=None)
def test_multibench_folds_match_its_code(n: int) -> None:
    """Compare with a transcription of get_data.py, which selects the screens of each mode."""
    ids = [str(50000 + i) for i in range(n)]
    examples = [e for e in ids if e not in {"50105", "50109"}]
    keys = list(range(len(examples)))
    random.Random(42).shuffle(keys)
    cut1, cut2 = int(len(examples) * 0.65), int(len(examples) * (0.65 + 0.15))
    modes = {"train": keys[:cut1], "val": keys[cut1:cut2], "test": keys[cut2:]}
    expected = {examples[k]: mode for mode, kept in modes.items() for k in kept}
    folds = multibench_folds(ids)
    assert {i: f for i, f in zip(ids, folds, strict=True) if f is not None} == expected


def test_cohort_has_every_screen_once_with_its_topic(raw: Path) -> None:
    cohort = build_cohort(raw, EnricoOptions())
    table = pl.read_csv(raw / "design_topics.csv", infer_schema=False)
    assert cohort.samples["sample_id"].to_list() == sorted(table["screen_id"])
    joined = cohort.labels["topic"].join(table, left_on="sample_id", right_on="screen_id", validate="1:1")
    assert all(TOPICS[v] == t for v, t in joined.select("value", "topic").iter_rows())
    assert cohort.labels["topic"]["value"].dtype == pl.Int8
    assert cohort.samples.filter(pl.col("fold").is_null())["sample_id"].to_list() == ["50105", "50109"]
    assert list(TOPICS) == sorted(TOPICS)
    assert DATASET.tasks[0].classes == TOPICS


def test_quality_columns_hold_the_worst_severity_of_each_source(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    ids = pl.read_csv(raw / "design_topics.csv", infer_schema=False)["screen_id"].to_list()[:2]
    rows = [f"{ids[0]},wireframe,offset,low", f"{ids[0]},wireframe,mismatch,high", f"{ids[0]},hierarchy,sidebar,medium"]
    (copy / "issues.csv").write_text("\n".join(["screen_id,source,description,severity", *rows]) + "\n")
    samples = build_cohort(copy, EnricoOptions()).samples
    row = samples.filter(sample_id=ids[0]).row(0, named=True)
    assert (row["issue_screenshot"], row["issue_wireframe"], row["issue_hierarchy"]) == (None, "high", "medium")
    assert row["issue_description"] == "wireframe: offset; wireframe: mismatch; hierarchy: sidebar"
    assert samples.filter(sample_id=ids[1])["issue_description"].item() is None
    (copy / "issues.csv").unlink()
    assert build_cohort(copy, EnricoOptions()).samples["issue_wireframe"].null_count() == SIMULATION.n_screens


def test_exclusions_are_counted_and_do_not_affect_other_screens(raw: Path) -> None:
    full = build_cohort(raw, EnricoOptions())
    issues = read_issues(raw)
    for limit, severities in (("high", ["high"]), ("medium", ["medium", "high"])):
        cohort = build_cohort(raw, EnricoOptions(exclude_issues=limit))
        excluded = set(issues.filter(pl.col("severity").is_in(severities))["screen_id"])
        assert set(full.samples["sample_id"]) - set(cohort.samples["sample_id"]) == excluded
        assert limit in cohort.attrition["reason"][1]
        assert cohort.attrition["n_before"].to_list() == [90, 90]
        assert cohort.attrition["n_after"].to_list() == [90, 90 - len(excluded)]
        assert cohort.samples.equals(
            full.samples.filter(pl.col("sample_id").is_in(cohort.samples["sample_id"].implode()))
        )
        assert cohort.labels["topic"]["sample_id"].equals(cohort.samples["sample_id"])


def test_landscape_screens_can_be_excluded_or_rotated(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    samples = build_cohort(raw, EnricoOptions()).samples
    wide = samples.filter(pl.col("screen_width") > pl.col("screen_height"))["sample_id"].to_list()
    assert wide == sorted(LANDSCAPE)
    excluded = build_cohort(raw, EnricoOptions(landscape="exclude"))
    assert set(samples["sample_id"]) - set(excluded.samples["sample_id"]) == set(LANDSCAPE)
    assert excluded.attrition["n_after"].to_list() == [90, 88]
    upright = next(i for i in samples["sample_id"] if i not in LANDSCAPE)
    with (copy / "issues.csv").open("a") as handle:
        handle.write(f"{upright},screenshot,landscape mode,high\n")
    listed = build_cohort(copy, EnricoOptions(landscape="exclude")).samples
    assert set(samples["sample_id"]) - set(listed["sample_id"]) == {*LANDSCAPE, upright}
    for modality in DATASET.modalities:
        squeezed = read(raw, modality, EnricoOptions(image_size=(64, 32)))
        rotated = read(raw, modality, EnricoOptions(image_size=(64, 32), landscape="rotate"))
        assert {i for i in rotated if not np.array_equal(rotated[i], squeezed[i])} == set(LANDSCAPE)


def test_uniform_scheme_preserves_topic_proportions(raw: Path) -> None:
    cohort = build_cohort(raw, EnricoOptions())
    scheme = DATASET.schemes["uniform"]
    samples = cohort.samples.join(cohort.labels["topic"], on="sample_id")
    split = grouped_stratified(samples, fractions=scheme.fractions, seed=0, stratum="value")
    counts = samples.join(split, on="sample_id").group_by("value", "split").len()
    for value, part, n in counts.iter_rows():
        total = int((samples["value"] == value).sum())
        fraction = dict(zip(("train", "val", "test"), scheme.fractions, strict=True))[part]
        assert abs(n - fraction * total) <= 1.5
