"""The data card: README.md of a store, rendered from its manifest."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.schema import Dataset
from mrpipe.store.layout import StoreLayout
from mrpipe.store.manifest import Manifest

_POLARS = """\
```python
import polars as pl

samples = pl.read_parquet("samples.parquet")
has_all = {mask}  # {names}
complete = samples.filter(pl.col("modality_mask") & has_all == has_all)
first = pl.read_parquet("modalities/{first}.parquet").join(complete.select("sample_id"), on="sample_id", how="semi")
train = pl.read_parquet("splits/{scheme}.parquet").filter(pl.col("split") == "train").join(samples, on="sample_id")
print(len(complete), len(first), len(train))
```"""

_DUCKDB = """\
```sql
SELECT count(*) FROM 'samples.parquet' WHERE modality_mask & {mask} = {mask};
SELECT s.sample_id, l.value, p.split FROM 'samples.parquet' s
  JOIN 'labels/{task}.parquet' l USING (sample_id) JOIN 'splits/{scheme}.parquet' p USING (sample_id);
```"""

_PACKED = """\
```python
import numpy as np, polars as pl

packed = pl.read_parquet("modalities/{name}.parquet")["x"]
rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), -1)
calls = (rows[:, :, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3).reshape(len(packed), -1)[:, :{size}]
```"""


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(str(c).replace("|", "\\|") for c in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _losses(losses: pl.DataFrame) -> list[str]:
    """Which samples lost a single modality and stay with their others."""
    if losses.is_empty():
        return []
    rows = list(losses.select("modality", "reason", "n_before", "n_after").iter_rows())
    return [
        "Samples that a modality was found for but not usable; they stay with their other modalities:",
        _table(("modality", "reason", "before", "after"), rows),
    ]


def render_card(dataset: Dataset, manifest: Manifest, root: Path) -> str:
    """The card as Markdown; its recipes run as they stand, from inside the store's folder."""
    attrition = pl.read_parquet(StoreLayout(root).attrition)
    flow, losses = (attrition.filter(c) for c in (pl.col("modality").is_null(), pl.col("modality").is_not_null()))
    modalities = manifest.declared_modalities()
    mask = sum(1 << m.bit for m in modalities)
    names = " & ".join(m.name for m in modalities)
    origin = (
        "**Simulated data.** Every number here comes from a simulator, not from people or recordings."
        if manifest.origin == "simulated"
        else "Made from an export of the original data."
    )
    fill = {
        "mask": mask,
        "names": names,
        "first": modalities[0].name,
        "scheme": manifest.default_scheme,
        "task": manifest.labels[0]["name"],
    }
    parts = [
        f"# {manifest.title}: feature store `{manifest.store_id}`",
        origin,
        f"{manifest.n_samples} samples of {manifest.n_subjects} subjects; release {manifest.release}; store format "
        f"{manifest.format}; mrpipe {manifest.mrpipe_version}; code {manifest.code_hash}.",
        f"Citation: {dataset.citation}\n\nLicence: {dataset.licence}\n\nFrom: {dataset.provider}",
        "## Modalities",
        _table(
            ("modality", "bit", "kind", "shape", "dtype", "rows", "encoder", "description"),
            [
                (
                    m.name,
                    m.bit,
                    m.kind,
                    "×".join(map(str, m.shape)),
                    m.dtype,
                    e["rows"],
                    m.encoder or "–",
                    m.description,
                )
                for m, e in zip(modalities, manifest.modalities, strict=True)
            ],
        ),
        "A sample that lacks a modality has no row in its table; an unknown value inside an observed modality is NaN. "
        "Values are cleaned, not imputed and not scaled: that depends on a split.",
        "## Which samples have what",
        _table(("combination", "samples"), list(manifest.pattern_counts.items())),
        "## Cohort flow",
        _table(("step", "reason", "before", "after"), list(flow.drop("modality").iter_rows())),
        *_losses(losses),
        "## Labels",
        _table(
            ("task", "kind", "classes", "labelled", "description"),
            [
                (t["name"], t["kind"], ", ".join(t["classes"]) or "–", t["rows"], t["description"])
                for t in manifest.labels
            ],
        ),
        "## Splits",
        _table(
            ("scheme", "train", "val", "test", "made by", "description"),
            [
                (s["scheme"], *(s["counts"].get(p, 0) for p in ("train", "val", "test")), s["method"], s["description"])
                for s in manifest.splits
            ],
        ),
        "## Reading it",
        "With polars:",
        _POLARS.format(**fill),
        "With DuckDB:",
        _DUCKDB.format(**fill),
        'With mrpipe: `mrpipe.open_store(".").arrays("' + modalities[0].name + '", part="train")`.',
    ]
    for m in modalities:
        if m.encoding == "packed2":
            parts += [
                f"Genotypes of `{m.name}` (copies of A1; 3 = not called):",
                _PACKED.format(name=m.name, size=m.size),
            ]
    if manifest.notes:
        parts += ["## Notes", "\n".join(f"- {n}" for n in manifest.notes)]
    return "\n\n".join(parts) + "\n"
