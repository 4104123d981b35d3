"""Expert visits by modality combination (Figure 3b and 3c of the paper).

A token is attributed to the sample that it was encoded from: items of the supporting group to the supporting training
sample, and observed modalities to the sample being completed. The full combination therefore occurs too, although its
samples need no retrieval.
"""

from collections import Counter

import numpy as np
import polars as pl
import torch

from moe_retriever.data.load import Data
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Method

SCHEMA = {"combination": pl.String, "role": pl.String, "n_items": pl.Int64, "expert": pl.Int32}
SCHEMA |= {"pool": pl.String, "name": pl.String, "visits": pl.Int64}


def expert_names(pools: list[str]) -> list[str]:
    """Names `<pool>_1`, `<pool>_2`, …, numbered from 1 within each pool."""
    counts: Counter[str] = Counter()
    names = []
    for pool in pools:
        counts[pool] += 1
        names.append(f"{pool}_{counts[pool]}")
    return names


@torch.no_grad()
def visits_by_combination(method: Method, data: Data, rows: Rows) -> pl.DataFrame | None:
    """Count expert visits during the prediction of `rows`, by combination and role of the sample a token comes from.

    Returns:
        One row per combination, role ("supporting" or "own") and expert; None for a method that does not report the
        routing of its items.
    """
    method.eval()
    method.refresh()
    size = method.config.common.eval_batch_size
    parts = []
    for start in range(0, len(rows), size):
        out = method(data.batch(rows[start : start + size], "evaluation"), detail=True)
        if (items := out.diagnostics.get("item_routing")) is not None:
            role = np.where(items["supporting"], "supporting", "own")
            visits = {str(e): n for e, n in enumerate(items["visits"].T)}
            parts.append(pl.DataFrame({"combination": data.combination(items["observed"]), "role": role, **visits}))
    if not parts:
        return None
    of_items = pl.concat(parts).group_by("combination", "role").agg(pl.len().alias("n_items"), pl.all().sum())
    pools = method.expert_pools(of_items.width - 3)
    experts = pl.DataFrame({"pool": pools, "name": expert_names(pools)}).with_row_index("expert")
    keys = ["combination", "role", "n_items"]
    table = of_items.unpivot(index=keys, variable_name="expert", value_name="visits").cast({"expert": pl.UInt32})
    table = table.join(experts, on="expert").sort("combination", "role", "expert")
    return table.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def expert_selection(visits: pl.DataFrame) -> pl.DataFrame:
    """Figure 3b: share of each expert among the visits of a combination's tokens; sums to 1 per combination."""
    return _ratio(visits, "combination")


def combination_shares(visits: pl.DataFrame) -> pl.DataFrame:
    """Figure 3c: share of each combination among the visits to an expert; sums to 1 per visited expert."""
    return _ratio(visits, "expert").filter(pl.col("ratio").is_not_nan())


def _ratio(visits: pl.DataFrame, within: str) -> pl.DataFrame:
    total = visits.group_by(["combination", "expert", "pool", "name"], maintain_order=True).agg(pl.col("visits").sum())
    return total.with_columns((pl.col("visits") / pl.col("visits").sum().over(within)).alias("ratio"))
