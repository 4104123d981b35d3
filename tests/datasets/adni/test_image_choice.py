"""Voxel grid of the maps, date formats, and selection of scans."""

from __future__ import annotations

from datetime import date, timedelta

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.datasets.adni.forms import values
from mrpipe.datasets.adni.image.scans import ordered_scans, rid_of
from mrpipe.datasets.adni.simulate.image import FULL_BOX, FULL_VOXELS, simulated_grid
from mrpipe.imaging.grid import INSIDE_ZERO, VoxelGrid, block_mean

# --- grid


def test_full_size_mask_has_the_published_voxel_count_and_bounding_box() -> None:
    grid, labels = simulated_grid((91, 109, 91))
    assert grid.n_voxels == FULL_VOXELS == int((labels == 150).sum())
    assert tuple((s.start, s.stop) for s in grid.box) == FULL_BOX
    assert nib.aff2axcodes(grid.affine) == ("L", "P", "S")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from(["float16", "float32"]))
def test_mask_and_vector_are_recovered_from_a_volume(seed: int, edge: int, dtype: str) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    mask = rng.random((7, 6, 5)) < 0.3
    mask[3, 2, 2] = True
    affine = np.array([[-2.0, 0, 0, 11], [0, 3, 0.1, -7], [0, 0, 2, 5], [0, 0, 0, 1]])
    grid = VoxelGrid(mask=mask, affine=affine)
    vector = (rng.lognormal(6.8, 0.4, grid.n_voxels) * (rng.random(grid.n_voxels) < 0.8)).astype(np.float32)
    volume = grid.volume(vector, dtype=dtype)
    np.testing.assert_array_equal(volume != 0, mask[grid.box])
    expected = np.where(vector == 0, INSIDE_ZERO, vector).astype(dtype)
    np.testing.assert_array_equal(volume[volume != 0], expected)
    # As in the authors' code: zeros of the shape of the mask, filled at the mask's voxels in C order.
    scattered = np.zeros(mask.shape, dtype=np.float32)
    scattered[mask] = vector
    np.testing.assert_array_equal(grid.vector(scattered), vector)
    # Voxels have the same world coordinates in the cropped and in the full grid.
    corner = np.array([s.start for s in grid.box])
    np.testing.assert_allclose(grid.crop_affine @ [1, 2, 3, 1], affine @ np.append(corner + np.array([1, 2, 3]), 1))
    pooled = grid.volume(vector, downsample=edge, dtype="float32")
    assert pooled.shape == grid.output_shape(edge)
    assert float(pooled.sum()) * edge**3 == pytest.approx(float(vector.sum()), rel=1e-5, abs=1e-2)
    np.testing.assert_array_equal(pooled != 0, block_mean(grid.inside.astype(np.float32), edge) > 0)


# --- selection of scans


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scan_selection_against_brute_force(data: st.DataObject) -> None:
    rule = data.draw(st.sampled_from(["earliest", "latest", "nearest"]))
    day = st.one_of(st.none(), st.integers(0, 30).map(lambda d: date(2010, 1, 1) + timedelta(days=d)))
    rows = data.draw(st.lists(st.tuples(st.integers(1, 3), day, st.integers(0, 2)), min_size=1, max_size=12))
    at = {r: data.draw(day) for r in (1, 2, 3)}
    scans = pl.DataFrame(
        [(r, d, rank, str(i)) for i, (r, d, rank) in enumerate(rows)],
        schema={"rid": pl.Int64, "date": pl.Date, "rank": pl.Int32, "image_id": pl.String},
        orient="row",
    )
    samples = pl.DataFrame(
        {
            "sample_id": [f"s{r}" for r in at],
            "subject_id": [f"002_S_{r:04d}" for r in at],
            "visit_date": list(at.values()),
        },
        schema_overrides={"visit_date": pl.Date},
    )
    chosen = ordered_scans(scans, samples, rule=rule, tries=99)

    def key(row: tuple) -> tuple:
        number, (rid, d, rank) = row
        if d is None:
            return (1, 0, 0, rank, number)
        days = d.toordinal()
        distance = {
            "earliest": days,
            "latest": -days,
            "nearest": days if at[rid] is None else abs(days - at[rid].toordinal()),
        }[rule]
        return (0, distance, days, rank, number)

    for rid in at:
        expected = sorted(((i, r) for i, r in enumerate(rows) if r[0] == rid), key=key)
        assert chosen.filter(sample_id=f"s{rid}")["image_id"].to_list() == [str(i) for i, _ in expected]
        assert chosen.filter(sample_id=f"s{rid}")["attempt"].to_list() == list(range(len(expected)))


def test_rid_is_extracted_from_ptid() -> None:
    frame = pl.DataFrame({"p": ["002_S_0413", "941_S_10413", "0413", "002_S_413"]})
    assert frame.select(rid_of("p"))["p"].to_list() == [413, 10413, None, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2006-05-02", date(2006, 5, 2)),
        ("2006-05-02_10_15_30.0", date(2006, 5, 2)),
        ("20060502", date(2006, 5, 2)),
        ("5/2/2006", date(2006, 5, 2)),
        ("5/2/06", date(2006, 5, 2)),
        ("02-May-2006", date(2006, 5, 2)),
        ("2006-13-02", None),
        ("--/--/2006", None),
        ("", None),
    ],
)
def test_dates_are_parsed_in_every_export_format(text: str, expected: date | None) -> None:
    assert pl.DataFrame({"d": [text]}).select(values.date("d")).item() == expected
