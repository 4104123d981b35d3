"""Citations, and sentences of the methods text about the data: sources, cohort, splits, transforms and missingness."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from moe_retriever.report.stores import public, shared
from moe_retriever.suites.published import dataset_title, hidden_text
from mrpipe.experiment.missingness import AT_LOAD, p_text
from mrpipe.schema import Modality
from mrpipe.store.masks import combination_name
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS
from mrpipe.transforms.options import TransformOptions

_KNOWN = Path(__file__).resolve().parent / "references.json"
_MECHANISMS = {
    "mcar": "each modality of a sample was hidden independently with probability {p} (missing completely at random)",
    "mnar_label": "each modality was hidden with a mean probability of {p} that increases with the class of {task} "
    "(missing not at random, strength {strength:g})",
    "mnar_value": "each modality was hidden with a mean probability of {p} that increases with the rank of its mean "
    "value (missing not at random, strength {strength:g})",
    "block": "samples were divided into {n_blocks} blocks, and each modality was hidden in a block with probability "
    "{p}",
    "timestep_drop": "each time step of a sequence was dropped with probability {p}; no modality was hidden",
    "gaussian": "Gaussian noise with standard deviation {p} was added to the scaled values; no modality was hidden",
}


@cache
def _known() -> dict[str, str]:
    return dict(json.loads(_KNOWN.read_text(encoding="utf-8")))


@dataclass
class Bibliography:
    """The reference list of one text."""

    entries: list[str] = field(default_factory=list)

    def cite(self, *works: str) -> str:
        """` [1, 2]` for keys of references.json or complete references; empty for empty ones."""
        numbers = []
        for work in filter(None, works):
            text = _known().get(work, work).strip().rstrip(".")
            if text not in self.entries:
                self.entries.append(text)
            numbers.append(self.entries.index(text) + 1)
        return f" [{', '.join(map(str, sorted(set(numbers))))}]" if numbers else ""


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(n: int, noun: str) -> str:
    """`1 sample`, `2,199 samples`."""
    return f"{n:,} {noun}{'' if f'{n}' == '1' else 's'}"


def _shape(m: Modality) -> str:
    size = "×".join(map(str, m.shape))
    if m.kind == "sequence":
        return f"{'irregular ' * m.irregular}sequences with {size} values per step"
    return {"vector": f"vectors of length {size}", "genotype": f"{size} SNPs"}.get(m.kind, f"{m.kind}s of size {size}")


def store_sentences(store: Store, cited: Bibliography) -> str:
    """Source, cohort, modalities and encoders of a store."""
    m = store.manifest
    source = f"an export of the original data ({m.release})"
    if m.origin == "simulated":
        layout = m.release.removesuffix(" layout")
        source = f"a simulated export with the file layout of {layout}, without real people or data"
    text = [
        f"{m.title}{cited.cite(m.citation)}: the data come from {source}. The feature store {m.store_id} "
        f"(mrpipe {m.mrpipe_version}, code {m.code_hash}) contains {plural(m.n_samples, 'sample')} from "
        f"{plural(m.n_subjects, 'subject')}."
    ]
    steps = shared(store, "attrition").to_dicts()
    lost = [f"{s['reason']} (n = {s['n_before'] - s['n_after']:,})" for s in steps if s["n_before"] > s["n_after"]]
    start = f"Of {steps[0]['n_before']:,} {steps[0]['reason']}"
    left_out = steps[0]["n_before"] - steps[-1]["n_after"]
    was = "was" if left_out == 1 else "were"
    text.append(f"{start}, {left_out:,} {was} excluded: {'; '.join(lost)}." if lost else f"{start}, all were included.")
    without = shared(store, "losses").filter(pl.col("n_before") > pl.col("n_after"))
    for (modality,), rows in without.group_by("modality", maintain_order=True):
        why = [f"{r['reason']} (n = {r['n_before'] - r['n_after']:,})" for r in rows.to_dicts()]
        text.append(f"The modality {modality} was excluded, and the sample kept, for these reasons: {'; '.join(why)}.")
    entries = sorted(m.modalities, key=lambda e: e["bit"])
    made = [
        f"{x.name} ({e['rows']:,}; {_shape(x)}{f', encoded by {x.encoder}' if x.encoder else ''})"
        for x, e in zip(store.modalities, entries, strict=True)
    ]
    complete = m.pattern_counts.get(combination_name(x.name for x in store.modalities), 0)
    text.append(
        f"The modalities (number of samples; format) are {listed(made)}; {complete:,} samples "
        f"({complete / m.n_samples:.1%}) have all modalities."
    )
    options = m.options if m.options_changed is None else {k: m.options[k] for k in m.options_changed}
    said = [f"{k}={public(v)}" for k, v in sorted(options.items())]
    name = "Reader options" if m.options_changed is None else "Non-default reader options"
    text.append(f"{name}: {', '.join(said) or 'none'}.")
    return " ".join(text) + _encoders(store, cited)


def _encoders(store: Store, cited: Bibliography) -> str:
    """Published software that produced features of the store."""
    text = ""
    if any("minilm" in x.encoder.lower() for x in store.modalities):
        text += f" Text was embedded with a pre-trained sentence encoder{cited.cite('minilm')}."
    if any("raw T1 scans" in s for s in store.dictionary["source_file"].drop_nulls().unique().to_list()):
        came_stripped = store.manifest.options.get("image_brain") == "stripped"
        first = (
            "were provided skull-stripped and were" if came_stripped else f"were skull-stripped{cited.cite('deepbet')},"
        )
        text += (
            f" T1-weighted scans {first} corrected for intensity inhomogeneity{cited.cite('n4')}, segmented"
            f"{cited.cite('tissues')} and warped to template space{cited.cite('ants')}."
        )
    return text


def split_sentences(store: Store, scheme: str) -> str:
    """The origin of a split and its sample sizes."""
    entry = next(s for s in store.manifest.splits if s["scheme"] == scheme)
    counts = " / ".join(f"{entry['counts'].get(part, 0):,}" for part in PARTS)
    stratified = f", stratified by {entry['stratify']}" if entry.get("stratify") else ""
    how = {"column": "predefined by the data set", "id list": "defined by a list of ids"}.get(
        entry["method"], f"drawn at random at the subject level{stratified} with seed {entry.get('seed', 0)}"
    )
    said = f"; {entry['description']}" if entry.get("description") else ""
    title = dataset_title("", store.manifest.title)
    return f"The split {scheme} of {title} was {how} ({counts} samples for training / validation / test{said})."


def _fitted(o: TransformOptions) -> dict[str, str]:
    """Descriptions of the transforms, by the kind of feature in the dictionary (mrpipe.transforms.features)."""
    clipped = f" and clipped to ±{o.clip:g}" if o.clip else ""
    scaled = {"standard": f"standardised{clipped}", "minmax": "scaled to [−1, 1]", "none": "not scaled"}[o.scale]
    pruned = f"pruned by linkage disequilibrium (r² > {o.ld_r2:g} in windows of {o.ld_window} SNPs)"
    return {
        "numeric": f"missing numeric values were imputed with the training {o.impute}, and numeric features were "
        f"{scaled}",
        "embedding": f"embeddings were {scaled}",
        "categorical": "categorical features were one-hot encoded, with unknown values as the most frequent category",
        "count": f"counts were converted to TF-IDF weights and reduced to {o.svd_dim} dimensions by truncated SVD",
        "pixel": "pixel and voxel values were standardised per channel",
        "genotype": f"SNPs were {pruned if o.ld_r2 else 'not pruned'}, and missing calls were imputed with the most "
        "frequent genotype",
        "event": f"items recorded for at least {100 * o.event_floor:g}% of the training samples (at most "
        f"{o.event_cap:,}) formed the event vocabulary; their values were averaged over {o.event_step_hours:g} h and "
        "standardised",
        "summary": "event summaries were standardised",
    }


def transform_sentences(
    stores: Sequence[Store], views: Mapping[str, set[str]], options: Sequence[Mapping[str, Any]]
) -> str:
    """The transforms fitted on the training samples, for the modalities in use.

    Args:
        views: store id → names of the modalities that runs used.
        options: non-default transform options of the runs, without duplicates.
    """
    kinds: list[str] = []
    for store in stores:
        seen = views.get(store.store_id, set())
        rows = store.dictionary
        kinds += [k for m, k in rows.select("modality", "kind").unique(maintain_order=True).iter_rows() if m in seen]
    text, usual = "Transforms were fitted on the training samples only", list[str]()
    for number, changed in enumerate(sorted(options, key=len)):
        fitted = _fitted(TransformOptions(**changed))
        done = [fitted[k] for k in dict.fromkeys(kinds) if k in fitted]
        named = f" with {', '.join(f'{k}={v}' for k, v in sorted(changed.items()))}" if changed else ""
        if number:
            text, done = f"{text} Other runs used transforms{named}", [d for d in done if d not in usual]
        else:
            text, usual = f"{text}{named}", done
        text += f": {'; '.join(done)}." if done else "."
    return text


def missingness_sentence(masks: Sequence[dict[str, Any] | None]) -> str:
    """The simulated missingness, over all seeds; all methods share the mask files."""
    hidden = [m for m in masks if m]
    if not hidden:
        return "No missingness was simulated; all observed modalities were used."
    said: dict[str, list[float]] = {}
    for m in hidden:
        again = ", redrawn until at least one remained" if m["redraw"] else ", even if no modality remained"
        again = ", given that at least one remained" if m.get("rate") == "marginal" else again
        again = "" if m["mechanism"] in AT_LOAD else again
        of_p = m | {"p": p_text(m["p"])}
        text = _MECHANISMS.get(m["mechanism"], "{mechanism}, p={p}").format(**of_p) + again
        said.setdefault(text, []).extend([m["hidden"]] if "hidden" in m else [])
    texts = [text + hidden_text(fmean(rates) if rates else None) for text, rates in said.items()]
    seeds = sorted({m["seed"] for m in hidden})
    numbers = listed([str(s) for s in seeds])
    drawn = f"once (mask seed {numbers})" if len(seeds) == 1 else f"once per mask seed ({numbers})"
    also = " (none in some runs)" if len(hidden) < len(masks) else ""
    what = f"Simulated missingness{also}: {'; or '.join(texts)}."
    return f"{what} The masks were drawn {drawn} for all splits and shared by all methods."
