"""Enrico: parsing hierarchies and rendering wireframes from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from mrpipe.datasets.enrico.hierarchy import Component, Hierarchy, _cumulative_mitchell, colour, parse_hierarchy, render
from mrpipe.datasets.enrico.tables import COMPONENT_COLOURS, Legend, read_legend
from mrpipe.errors import DataError

LEGEND = Legend(components=COMPONENT_COLOURS, icons={"menu": "#222"})

BOUND = st.integers(-10, 330)
COMPONENTS = st.builds(
    Component,
    label=st.sampled_from(["Text", "Image", "Card", "Icon", "Text Button", "Nothing Known"]),
    bounds=st.tuples(BOUND, BOUND, BOUND, BOUND),
    icon=st.sampled_from([None, "menu"]),
    concept=st.sampled_from([None, "go"]),
)


def paint_brute_force(hierarchy: Hierarchy) -> np.ndarray:
    """Paint in order on the full canvas, pixel by pixel, (H, W, 4)."""
    width, height = hierarchy.canvas
    y, x = np.mgrid[:height, :width]
    canvas = np.full((height, width, 4), 255.0)
    for component in hierarchy.components:
        x0, y0, x1, y1 = component.bounds
        if x1 <= x0 or y1 <= y0:
            continue
        canvas[(x >= x0) & (x < x1 + 3) & (y >= y0) & (y < y1 + 3)] = 255
        canvas[(x >= x0 + 3) & (x < x1) & (y >= y0 + 3) & (y < y1)] = colour(component, LEGEND)
    return canvas


@settings(max_examples=60, deadline=None)
@given(components=st.lists(COMPONENTS, max_size=12))
def test_render_equals_pre_order_painting_on_the_full_canvas(components: list[Component]) -> None:
    hierarchy = Hierarchy(components=tuple(components), canvas=(180, 320))
    canvas = paint_brute_force(hierarchy)
    canvas[..., :3] *= canvas[..., 3:] / 255
    down, across = (np.diff(_cumulative_mitchell(n, n * 3 // 20), axis=1) for n in (320, 180))
    expected = np.einsum("hy,yxc,wx->hwc", down, canvas, across, optimize=True)
    got = np.asarray(render(hierarchy, LEGEND, (27, 48))).astype(float)
    alpha = np.clip(expected[..., 3:], 0, 255)
    assert np.abs(got[..., 3:] - alpha).max() <= 0.501
    seen = alpha[..., 0] >= 1
    colours = np.clip(expected[..., :3][seen] * 255 / alpha[seen], 0, 255)
    assert np.abs(got[..., :3][seen] - colours).max(initial=0) <= 0.501


def test_render_keeps_flat_regions_exact_and_downscales_with_mitchell() -> None:
    card = Component(label="Card", bounds=(400, 800, 1040, 1760))
    image = np.asarray(render(Hierarchy(components=(card,), canvas=(1440, 2560)), LEGEND, (540, 960)))
    assert image[480, 270].tolist() == [*ImageColor.getrgb(COMPONENT_COLOURS["Card"]), 255]
    assert image[5, 5].tolist() == [255, 255, 255, 255]
    weights = np.diff(_cumulative_mitchell(2560, 960), axis=1)
    assert np.allclose(weights.sum(axis=1), 1)
    # Mitchell and Netravali (1988): value at 0 is 8/9, at 1 is 1/18, zero from 2 on.
    scale = 8 / 3
    assert weights[480].max() * scale == pytest.approx(8 / 9, rel=0.06)
    assert (weights[480] > 1e-12).sum() <= np.ceil(4 * scale)


def test_later_and_deeper_nodes_cover_earlier_ones_and_holes_are_transparent() -> None:
    tree = {
        "bounds": [0, 0, 1440, 2560],
        "children": [
            {
                "componentLabel": "Card",
                "bounds": [0, 0, 1000, 1000],
                "children": [{"componentLabel": "Image", "bounds": [0, 0, 800, 800]}],
            },
            {
                "bounds": [0, 0, 10, 10],
                "children": [{"componentLabel": "Text Button", "bounds": [0, 0, 400, 400], "textButtonClass": "go"}],
            },
            {"componentLabel": "Icon", "bounds": [1100, 1100, 1300, 1300], "iconClass": "menu"},
            {"componentLabel": "Text", "bounds": None},
        ],
    }
    hierarchy = parse_hierarchy(json.dumps(tree).encode(), "x")
    assert [c.label for c in hierarchy.components] == ["Card", "Image", "Text Button", "Icon"]
    image = render(hierarchy, LEGEND, (540, 960))
    assert image.getpixel((75, 75)) == (0, 0, 0, 0)
    assert image.getpixel((225, 225)) == (*ImageColor.getrgb(COMPONENT_COLOURS["Image"]), 255)
    assert image.getpixel((340, 340)) == (*ImageColor.getrgb(COMPONENT_COLOURS["Card"]), 255)
    assert image.getpixel((450, 450)) == (0x22, 0x22, 0x22, 255)


def test_optional_fields_of_a_hierarchy_may_be_absent() -> None:
    assert parse_hierarchy(b"{}", "x").components == ()
    assert parse_hierarchy(b'{"children": [null, {"componentLabel": "Text"}]}', "x").components == ()
    assert parse_hierarchy(b'{"bounds": [0, 0, 2560, 1440]}', "x").canvas == (2560, 1440)
    assert parse_hierarchy(b'{"bounds": [40, 300, 1400, 900]}', "x").canvas == (1440, 2560)
    odd = b'{"children": [{"componentLabel": "Text", "bounds": [0, 0, 9, 9], "text": "caf\xe9"}]}'
    assert len(parse_hierarchy(odd, "x").components) == 1
    deep = b'{"children": [' * 400 + b'{"componentLabel": "Text", "bounds": [0, 0, 9, 9]}' + b"]}" * 400
    assert len(parse_hierarchy(deep, "x").components) == 1


@pytest.mark.parametrize(
    ("data", "match"), [(b"", "JSON"), (b'{"bounds": [0', "JSON"), (b"[]", "object"), (b'{"screen_id": 7}', "screen 5")]
)
def test_hierarchy_errors_name_the_file(data: bytes, match: str) -> None:
    with pytest.raises(DataError, match=rf"hierarchies/5\.json.*{match}"):
        parse_hierarchy(data, "hierarchies/5.json")


def test_legend_of_the_export_overrides_the_built_in_one(tmp_path: Path) -> None:
    assert read_legend(tmp_path) == Legend(components=COMPONENT_COLOURS, icons={})
    (tmp_path / "component_legend.json").write_text('{"Text": {"rgb": [2, 3, 4], "hex": "#010203"}}')
    component = Component(label="Text", bounds=(0, 0, 9, 9))
    assert colour(component, read_legend(tmp_path)) == (1, 2, 3, 255)
