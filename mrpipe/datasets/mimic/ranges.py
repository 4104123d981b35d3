"""Units, unit conversions and ranges of possible values of measurements.

The ranges are physiological limits, wide enough for the sickest patients and for the measuring range of the devices.
They follow the outlier limits of MIMIC-Extract (Wang et al., 2020, resources/variable_ranges.csv, OUTLIER LOW and
OUTLIER HIGH) for items in that table. Percentiles are not used, because they would depend on the cohort. The tables
are in ranges.json.
"""

from mrpipe.constants import constants

Conversions = dict[tuple[str, str], tuple[float, float]]
_TABLES = constants(__file__, "ranges.json")

# Units, by their canonical and other spellings in lower case without blanks.
SPELLINGS: dict[str, str] = {u.lower().replace(" ", ""): u for u in _TABLES["units"]} | _TABLES["spellings"]

# (source unit, target unit) → factor and offset for any item: target value = source value · factor + offset.
_FORWARD: Conversions = {(a, b): (factor, offset) for a, b, factor, offset in _TABLES["conversions"]}
CONVERSIONS: Conversions = {("ug/dL", "mg/dL"): (1e-3, 0.0), **_FORWARD} | {
    (b, a): (1 / factor, -offset / factor) for (a, b), (factor, offset) in _FORWARD.items()
}
# Molar conversions depend on the substance: item → (source unit, target unit) → factor and offset.
ITEM_CONVERSIONS: dict[int, Conversions] = {
    item: {(a, b): (factor, 0.0)} for _, items, a, b, factor in _TABLES["one_way"] for item in items
} | {
    item: {(a, b): (factor, 0.0), (b, a): (1 / factor, 0.0)}
    for _, items, a, b, factor in _TABLES["both_ways"]
    for item in items
}
# Pairs of items for the same quantity in two units: item → its unit, the item it is merged into, and the unit of that.
MERGED: dict[int, tuple[str, int, str]] = {item: (unit, into, other) for item, unit, into, other in _TABLES["merged"]}
# Target units of these items, instead of the most frequent unit.
UNITS: dict[int, str] = dict(_TABLES["item_units"])
# Item → lowest and highest possible value in the target unit.
RANGES: dict[int, tuple[float, float]] = {
    item: (low, high) for _, items, low, high in _TABLES["ranges"] for item in items
}


def canonical_unit(unit: str) -> str:
    """Canonical spelling of a unit; unknown units are returned without surrounding blanks."""
    return SPELLINGS.get(unit.lower().replace(" ", ""), unit.strip())


def conversion(item: int, source: str, target: str) -> tuple[float, float] | None:
    """Factor and offset from one unit of an item to another, None if unknown; a blank unit is the target unit."""
    if source in ("", target):
        return 1.0, 0.0
    return ITEM_CONVERSIONS.get(item, {}).get((source, target)) or CONVERSIONS.get((source, target))
