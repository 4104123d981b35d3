"""The data card: the README.md of a store, rendered from its manifest by the template card.txt."""

from pathlib import Path

import polars as pl
from jinja2 import Environment, StrictUndefined

from mrpipe.privacy import SMALL, markdown_text, rounded
from mrpipe.schema import Dataset, flow_lines
from mrpipe.store.layout import StoreLayout
from mrpipe.store.manifest import Manifest

_MARKDOWN = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
_MARKDOWN.filters |= {"text": markdown_text, "row": lambda cells: f"| {' | '.join(map(markdown_text, cells))} |"}


def render_card(dataset: Dataset, manifest: Manifest, root: Path) -> str:
    """The card as Markdown; its code examples run unchanged in the store's folder."""
    manifest, attrition = manifest.shared(), pl.read_parquet(StoreLayout(root).attrition)
    if hidden := manifest.origin != "simulated" and manifest.count is not int:
        attrition = attrition.with_columns(rounded(pl.col("n_before", "n_after")))
    losses = attrition.drop_nulls("modality").partition_by("modality", maintain_order=True)
    modalities = manifest.declared_modalities()
    return _MARKDOWN.from_string(Path(__file__).with_name("card.txt").read_text(encoding="utf-8")).render(
        m=manifest,
        dataset=dataset,
        modalities=[(m, entry["rows"]) for m, entry in zip(modalities, manifest.modalities, strict=True)],
        names=[m.name for m in modalities],
        vectors=[m.name for m in modalities if m.kind == "vector"],
        mask=sum(1 << m.bit for m in modalities),
        flow=flow_lines(attrition.filter(pl.col("modality").is_null())),
        losses=[f"{of['modality'][0]}: {line}" for of in losses for line in flow_lines(of)],
        rounded=hidden,
        small=SMALL,
    )
