"""Map free-text medication names to active ingredients.

The list is fixed, so no vocabulary is fitted on participants. It covers ingredients that are common in this age group,
with their brand names. A name matches if one of its words is listed (`Lipitor 20 mg`, `ATORVASTATIN CALCIUM`).
"""

import polars as pl

from mrpipe.constants import constants

_LISTED: dict[str, dict[str, tuple[str, ...]]] = constants(__file__, "medications.json")
# Cholinesterase inhibitors and memantine are prescribed for dementia and reveal the label.
DEMENTIA_DRUGS, INGREDIENTS = _LISTED["dementia"], _LISTED["others"]
# Vitamins named by a single letter need a pattern instead of a word list.
_LETTERS = {"vitamin_d": "d", "vitamin_e": "e", "ascorbic_acid": "c"}
PHRASES = {name: rf"vit(?:amin)?\.? ?{letter}\b" for name, letter in _LETTERS.items()}
NO_MEDICATION = ("none", "no medication", "no medications", "n/a")


def words(column: str) -> pl.Expr:
    """Split a medication name into lower-case words."""
    return pl.col(column).str.to_lowercase().str.extract_all(r"[a-z0-9][a-z0-9-]*")


def names_any(column: str, ingredient: str) -> pl.Expr:
    """Whether a medication name contains an ingredient or one of its brand names."""
    found = words(column).list.eval(pl.element().is_in({**INGREDIENTS, **DEMENTIA_DRUGS}[ingredient])).list.any()
    if ingredient in PHRASES:
        found = found | pl.col(column).str.to_lowercase().str.contains(PHRASES[ingredient])
    return found.fill_null(False)


def is_dementia_drug(column: str) -> pl.Expr:
    return pl.any_horizontal(names_any(column, i) for i in DEMENTIA_DRUGS)
