"""Units, unit conversions and ranges of possible values of measurements.

The ranges are physiological limits, wide enough for the sickest patients and for the measuring range of the devices.
They follow the outlier limits of MIMIC-Extract (Wang et al., 2020, resources/variable_ranges.csv, OUTLIER LOW and
OUTLIER HIGH) for items in that table. Percentiles are not used, because they would depend on the cohort.
"""

from collections.abc import Mapping

# Units in canonical spelling, and other spellings; compared in lower case without blanks.
_UNITS = (
    "mg/dL|g/dL|ug/dL|ng/dL|mg/L|g/L|mEq/L|mmol/L|umol/L|nmol/L|IU/L|K/uL|m/uL|%|mm Hg|cmH2O|sec|ng/mL|ug/mL|pg/mL|bpm|"
    "insp/min|°F|°C|kg|lb|cm|inch|mL|L/min|mL/hr"
)
_VARIANTS = (
    "u/l=IU/L|k/mcl=K/uL|10^3/ul=K/uL|10^9/l=K/uL|x10^9/l=K/uL|thous/mcl=K/uL|10^6/ul=m/uL|10^12/l=m/uL|percent=%|"
    "mm[hg]=mm Hg|cmh20=cmH2O|seconds=sec|s=sec|mcg/ml=ug/mL|beats/min=bpm|breaths/min=insp/min|degf=°F|f=°F|deg.f=°F|"
    "degc=°C|c=°C|deg.c=°C|kgs=kg|lbs=lb|lbs.=lb|in=inch|inches=inch"
)
SPELLINGS: dict[str, str] = {u.lower().replace(" ", ""): u for u in _UNITS.split("|")}
SPELLINGS |= dict(v.split("=") for v in _VARIANTS.split("|"))

# (source unit, target unit) → factor and offset for any item: target value = source value · factor + offset.
_FORWARD: Mapping[tuple[str, str], tuple[float, float]] = {
    ("g/dL", "g/L"): (10.0, 0.0),
    ("mg/dL", "mg/L"): (10.0, 0.0),
    ("g/dL", "mg/dL"): (1e3, 0.0),
    ("mg/L", "ug/mL"): (1.0, 0.0),
    ("mg/dL", "ug/mL"): (10.0, 0.0),
    ("ug/mL", "ng/mL"): (1e3, 0.0),
    ("ng/mL", "pg/mL"): (1e3, 0.0),
    ("ng/mL", "ng/dL"): (100.0, 0.0),
    ("ug/dL", "ng/mL"): (10.0, 0.0),
    ("°C", "°F"): (1.8, 32.0),
    ("lb", "kg"): (0.45359237, 0.0),
    ("inch", "cm"): (2.54, 0.0),
}
CONVERSIONS = {("ug/dL", "mg/dL"): (1e-3, 0.0), **_FORWARD} | {
    (b, a): (1 / factor, -offset / factor) for (a, b), (factor, offset) in _FORWARD.items()
}


def _both_ways(a: str, b: str, factor: float) -> dict[tuple[str, str], tuple[float, float]]:
    return {(a, b): (factor, 0.0), (b, a): (1 / factor, 0.0)}


# Molar conversions depend on the substance: item → (source unit, target unit) → factor and offset.
_MONOVALENT = (50983, 50971, 50902, 50882, 50868, 50803, 50804, 50806, 50822, 50824, 52610, 52623)
ITEM_CONVERSIONS: Mapping[int, Mapping[tuple[str, str], tuple[float, float]]] = {
    **dict.fromkeys(_MONOVALENT, _both_ways("mmol/L", "mEq/L", 1.0)),
    **dict.fromkeys((50931, 50809, 52569), _both_ways("mmol/L", "mg/dL", 18.016)),
    **dict.fromkeys((50912, 52546), _both_ways("mg/dL", "umol/L", 88.42)),
    **dict.fromkeys((50883, 50884, 50885), _both_ways("mg/dL", "umol/L", 17.1)),
    **dict.fromkeys((51006, 52647), _both_ways("mmol/L", "mg/dL", 2.801)),
    50893: {("mmol/L", "mg/dL"): (4.008, 0.0)},
    50960: {("mmol/L", "mg/dL"): (2.431, 0.0)},
    50970: {("mmol/L", "mg/dL"): (3.097, 0.0)},
    50813: {("mg/dL", "mmol/L"): (1 / 9.01, 0.0)},
    51249: _both_ways("%", "g/dL", 1.0),  # MCHC, a mass fraction: 1 g/dL = 1 %
    51099: _both_ways("Ratio", "mg/mg", 1.0),
}

# Pairs of items for the same quantity in two units: item → its unit, the item it is merged into, and the unit of that.
MERGED: Mapping[int, tuple[str, int, str]] = {
    223761: ("°F", 223762, "°C"),
    226531: ("lb", 226512, "kg"),
    226707: ("inch", 226730, "cm"),
}
# Target units of these items, instead of the most frequent unit.
UNITS: Mapping[int, str] = {
    223762: "°C",
    226512: "kg",
    226730: "cm",
    224639: "kg",
    50931: "mg/dL",
    50912: "mg/dL",
    51006: "mg/dL",
    50885: "mg/dL",
    50813: "mmol/L",
}

# Item → lowest and highest possible value in the target unit.
RANGES: Mapping[int, tuple[float, float]] = {
    220045: (0, 390),  # heart rate, bpm
    **dict.fromkeys((220179, 220050, 225309), (0, 375)),  # systolic pressure, mm Hg
    **dict.fromkeys((220180, 220051, 225310), (0, 375)),  # diastolic
    **dict.fromkeys((220181, 220052, 225312), (0, 375)),  # mean
    **dict.fromkeys((220210, 224690), (0, 330)),  # respiratory rate per minute
    **dict.fromkeys((220277, 220227), (0, 100)),  # oxygen saturation, %
    223762: (14.2, 47.0),  # temperature, °C
    226512: (0.1, 650),
    224639: (0.1, 650),  # weight, kg
    226730: (20, 260),  # height, cm
    223835: (0, 100),  # FiO2, %
    220074: (-40, 200),  # central venous pressure, mm Hg
    **dict.fromkeys((223900, 223901, 220739), (1, 6)),  # components of the Glasgow coma scale
    **dict.fromkeys((220621, 225664, 226537, 50931, 50809, 52569), (0, 2200)),  # glucose, mg/dL
    **dict.fromkeys((50912, 52546, 220615), (0, 66)),  # creatinine, mg/dL
    **dict.fromkeys((51006, 52647, 225624), (0, 275)),  # urea nitrogen, mg/dL
    **dict.fromkeys((50983, 50824, 52623, 220645), (50, 250)),  # sodium, mEq/L
    **dict.fromkeys((50971, 50822, 52610, 227442), (0, 15)),  # potassium, mEq/L
    **dict.fromkeys((50902, 50806, 52535, 220602), (35, 200)),  # chloride, mEq/L
    **dict.fromkeys((50882, 50803, 52039, 227443), (0, 66)),  # bicarbonate, mEq/L
    **dict.fromkeys((51222, 50811, 220228), (0, 30)),  # haemoglobin, g/dL
    **dict.fromkeys((51221, 50810, 220545), (0, 100)),  # haematocrit, %
    **dict.fromkeys((51265, 227457), (0, 2200)),  # platelets, K/uL
    **dict.fromkeys((51301, 51300, 220546), (0, 1100)),  # white cells, K/uL
    **dict.fromkeys((50813, 52442, 225668), (0, 33)),  # lactate, mmol/L
    **dict.fromkeys((50885, 225690), (0, 66)),  # bilirubin, mg/dL
    **dict.fromkeys((50862, 227456), (0, 60)),  # albumin, g/dL
    **dict.fromkeys((51237, 227467), (0, 150)),  # INR
    **dict.fromkeys((50820, 223830), (6.3, 8.4)),  # arterial pH
    **dict.fromkeys((50818, 220235), (0, 220)),  # pCO2, mm Hg
    **dict.fromkeys((50821, 220224), (0, 800)),  # pO2, mm Hg
    **dict.fromkeys((50893, 225625), (0, 30)),  # calcium, mg/dL
    **dict.fromkeys((50960, 220635), (0, 22)),  # magnesium, mg/dL
    **dict.fromkeys((50970, 225677), (0, 30)),  # phosphate, mg/dL
    **dict.fromkeys((50861, 220644), (0, 25000)),  # ALT, IU/L
    **dict.fromkeys((50878, 220587), (0, 25000)),  # AST, IU/L
    **dict.fromkeys((51003, 227429), (0, 25)),  # troponin T, ng/mL
}


def canonical_unit(unit: str) -> str:
    """Canonical spelling of a unit; unknown units are returned without surrounding blanks."""
    return SPELLINGS.get(unit.lower().replace(" ", ""), unit.strip())


def conversion(item: int, source: str, target: str) -> tuple[float, float] | None:
    """Factor and offset from one unit of an item to another, None if unknown; a blank unit is the target unit."""
    if source in ("", target):
        return 1.0, 0.0
    return ITEM_CONVERSIONS.get(item, {}).get((source, target)) or CONVERSIONS.get((source, target))
