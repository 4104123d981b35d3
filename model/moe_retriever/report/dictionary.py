"""Condensed data dictionary: statistics per modality, and one row per run of similar features.

A store can have hundreds of thousands of features. Consecutive features whose names differ only in a number
(`text_0 … text_383`) form one row, and a modality shows at most `MAX_ROWS` rows; `dictionary.parquet` is complete.
"""

from typing import Any

import polars as pl

MAX_ROWS = 250
_NUMBER = r"\d+(?:\.\d+)?"


def missing_rate() -> pl.Expr:
    """Share of missing values of a feature among the samples (for a sequence, the steps) of the modality.

    Null if the modality has none.
    """
    total = pl.col("n_observed") + pl.col("n_missing")
    return pl.when(total > 0).then(pl.col("n_missing") / total)


def summarise(dictionary: pl.DataFrame) -> list[dict[str, Any]]:
    """One entry per modality, in the order of the dictionary.

    Keys: `modality, n_features, kinds` (number per kind), `sources, median` and `highest` (missing rate), `n_never`
    (features without any value), `rows` (see `_rows`, at most `MAX_ROWS`) and `n_rows` (their total number).
    """
    out = []
    for (modality,), features in dictionary.group_by("modality", maintain_order=True):
        kinds = features.group_by("kind", maintain_order=True).len().rows()
        sources = features["source_file"].drop_nulls().str.split(", ").explode().unique(maintain_order=True).to_list()
        rate = features.select(missing_rate().alias("rate"))["rate"]
        rows = _rows(features)
        out.append(
            {
                "modality": modality,
                "n_features": len(features),
                "kinds": ", ".join(f"{n:,} {kind}" for kind, n in kinds),
                "sources": ", ".join(sources[:4]) + (f" and {len(sources) - 4} more" if len(sources) > 4 else ""),
                "median": rate.median(),
                "highest": rate.max(),
                "n_never": int((features["n_observed"] == 0).sum()),
                "rows": rows.head(MAX_ROWS).to_dicts(),
                "n_rows": len(rows),
            }
        )
    return out


def _rows(features: pl.DataFrame) -> pl.DataFrame:
    """Runs of consecutive features with the same kind, unit, source and wording, and the SNPs of a chip.

    Each row has the first and last name, the number of features, and the lowest and highest missing rate.
    """
    plain = pl.col("name", "description", "source_column").fill_null("").str.replace_all(_NUMBER, "#")
    same = pl.concat_str(plain, pl.col("kind", "unit", "dtype", "source_file").fill_null(""), separator="\x1f")
    # SNPs differ only by name, position and alleles, and those of one chip are not consecutive.
    chip = pl.concat_str([pl.lit("genotype"), pl.col("source_file").fill_null("")], separator="\x1f")
    run = pl.when(pl.col("kind") == "genotype").then(chip).otherwise(same.rle_id().cast(pl.String))
    one_description = pl.col("description").n_unique() == 1
    runs = features.with_columns(run=run, rate=missing_rate())
    return runs.group_by("run", maintain_order=True).agg(
        pl.len().alias("n"),
        pl.col("name").first(),
        pl.col("name").last().alias("last"),
        pl.col("kind", "unit", "source_file", "source_column").first(),
        pl.col("description").first() + pl.when(one_description).then(pl.lit("")).otherwise(pl.lit(" …")),
        pl.col("n_observed").min(),
        pl.col("rate").min().alias("low"),
        pl.col("rate").max().alias("high"),
    )
