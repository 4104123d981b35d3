"""Identifiers that nearly match: differences of case, padding, punctuation, leading zeros or prefix."""

from collections.abc import Iterable

import polars as pl

from mrpipe.errors import shape

_EDGE = r"[\s'\"\u{feff}]+"
# Differences between ids that mean the same: patterns and replacements, each applied on top of the previous ones.
_FORMS = (
    ("case, padding or quotes", f"^{_EDGE}|{_EDGE}$", ""),
    ("a decimal point", r"\.0+$", ""),
    ("spaces or punctuation", r"[^\pL\pN]", ""),
    ("leading zeros", "(^|[^0-9])0+([0-9])", "$1$2"),
    ("a prefix", "^.*?([0-9]+)$", "$1"),
)


def near_miss(ids: Iterable[str | None], known: Iterable[str | None]) -> str:
    """How many of the ids equal a known one in a looser form, with the shape of an example; empty if few do."""
    left, right = (pl.DataFrame({"id": list(s)}, schema={"id": pl.String}).drop_nulls().unique() for s in (ids, known))
    form = pl.col("id").str.normalize("NFKC").str.to_lowercase()
    for difference, pattern, replacement in _FORMS:
        form = form.str.replace_all(pattern, replacement)
        keyed = (t.with_columns(form.alias("key")).filter(pl.col("key") != "") for t in (left, right))
        pairs = next(keyed).join(next(keyed), on="key", how="inner").sort("id", "id_right")
        n = pairs["id"].n_unique()
        # Numbers at the end of ids often agree by chance.
        if n and (difference != "a prefix" or 2 * n >= len(left)):
            example = f"such as {shape(pairs['id'][0])} instead of {shape(pairs['id_right'][0])}"
            return f"{n} {'differs' if n == 1 else 'differ'} only in {difference}, {example}"
    return ""


def alike(values: pl.Series) -> str:
    """Shapes of two values that differ only in case, padding, quotes, a decimal point or leading zeros, if any."""
    key = pl.col("id").str.normalize("NFKC").str.to_lowercase()
    for _, pattern, replacement in (_FORMS[0], _FORMS[1], _FORMS[3]):
        key = key.str.replace_all(pattern, replacement)
    frame = pl.DataFrame({"id": values.drop_nulls().unique()}).with_columns(key.alias("key"))
    pairs = frame.filter(pl.col("key").is_duplicated()).sort("key", "id")["id"]
    return f"{shape(pairs[0])} and {shape(pairs[1])}" if len(pairs) else ""
