"""Items, codes with titles, and phrases of notes for simulated MIMIC-IV exports, from pools.json."""

from mrpipe.constants import constants

Items = tuple[tuple[int, str, str, float, float, float, float, float, float], ...]
Codes = tuple[tuple[str, str, float, float], ...]
Texts = tuple[tuple[int, str, tuple[str, ...]], ...]

_POOLS = constants(__file__, "pools.json")
# itemid, label, unit, mean, sd, rounding step, loadings on the shared and the lab factor, relative frequency
LAB_ITEMS: Items = _POOLS["LAB_ITEMS"]
CHART_ITEMS: Items = _POOLS["CHART_ITEMS"]
# itemid, label, values
LAB_TEXT: Texts = _POOLS["LAB_TEXT"]
CHART_TEXT: Texts = _POOLS["CHART_TEXT"]
# icd_code, long_title, log odds at factor 0, loading on the factor
DX9, PR9, DX10, PR10 = (_POOLS[name] for name in ("DX9", "PR9", "DX10", "PR10"))
# Pairs of an unfavourable and a favourable phrase.
PHRASES: tuple[tuple[str, str], ...] = _POOLS["PHRASES"]
_LISTS = ("PLAIN", "COMPLAINTS", "LOCATIONS", "ADMISSION_TYPES", "INSURANCE", "RACES", "CAREUNITS")
PLAIN, COMPLAINTS, LOCATIONS, ADMISSION_TYPES, INSURANCE, RACES, CAREUNITS = (_POOLS[name] for name in _LISTS)
