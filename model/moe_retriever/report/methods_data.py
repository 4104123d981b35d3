"""Sentences of the methods text about data: what was read, who is in, how it was split, and what was hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from moe_retriever.report.references import Bibliography
from moe_retriever.report.stores import public
from mrpipe.schema import Modality
from mrpipe.store.masks import combination_name
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS
from mrpipe.transforms.options import TransformOptions

_MECHANISMS = {
    "mcar": "each modality of a sample was hidden with probability {p:g}, independently",
    "mnar_label": "each modality was hidden with a mean probability of {p:g} that rises with the class of {task} "
    "(strength {strength:g})",
    "mnar_value": "each modality was hidden with a mean probability of {p:g} that rises with its own content (strength "
    "{strength:g})",
    "block": "samples fell into {n_blocks} blocks, and a block lacked a modality with probability {p:g}",
    "timestep_drop": "each step of a sequence was dropped with probability {p:g}; no modality was hidden",
    "gaussian": "noise of standard deviation {p:g} was added to the scaled values; no modality was hidden",
}


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(n: int, noun: str) -> str:
    """`1 sample`, `2,199 samples`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def short_title(store: Store) -> str:
    """The title of a data set without what comes after its name."""
    return store.manifest.title.split(":")[0]


def _shape(m: Modality) -> str:
    size = "×".join(map(str, m.shape))
    if m.kind == "sequence":
        return f"{'irregular ' * m.irregular}sequences of {size} values a step"
    return {"vector": f"vectors of {size}", "genotype": f"{size} SNPs"}.get(m.kind, f"{m.kind}s of {size}")


def store_sentences(store: Store, cited: Bibliography) -> str:
    """What was read, who is in and who is not, which modalities there are, and which encoders made them."""
    m = store.manifest
    source = (
        "a simulated export (release layout: {release}; no real people or recordings)"
        if m.origin == "simulated"
        else "an export of the original data ({release})"
    ).format(release=m.release)
    text = [
        f"{m.title}{cited.cite(m.citation)} was read from {source} into the sealed feature store {m.store_id} "
        f"(mrpipe {m.mrpipe_version}, code {m.code_hash}): {plural(m.n_samples, 'sample')} of "
        f"{plural(m.n_subjects, 'subject')}."
    ]
    steps = store.attrition.to_dicts()
    lost = [f"{s['reason']} ({s['n_before'] - s['n_after']:,})" for s in steps if s["n_before"] > s["n_after"]]
    start = f"Of {steps[0]['n_before']:,} {steps[0]['reason']}"
    left_out = steps[0]["n_before"] - steps[-1]["n_after"]
    was = "was" if left_out == 1 else "were"
    text.append(f"{start}, {left_out:,} {was} left out: {'; '.join(lost)}." if lost else f"{start}, all were included.")
    without = store.losses.filter(pl.col("n_before") > pl.col("n_after"))
    for (modality,), rows in without.group_by("modality", maintain_order=True):
        why = [
            f"{r['reason'].removeprefix(f'{modality} left out: ')} ({r['n_before'] - r['n_after']:,})"
            for r in rows.to_dicts()
        ]
        text.append(f"Samples lost their {modality} and stayed with what else they have: {'; '.join(why)}.")
    entries = sorted(m.modalities, key=lambda e: e["bit"])
    made = [
        f"{x.name} ({e['rows']:,}; {_shape(x)}{f', made by {x.encoder}' if x.encoder else ''})"
        for x, e in zip(store.modalities, entries, strict=True)
    ]
    complete = m.pattern_counts.get(combination_name(x.name for x in store.modalities), 0)
    text.append(
        f"Modalities (samples that have them; form): {', '.join(made)}; {complete:,} samples "
        f"({complete / m.n_samples:.1%}) have all of them."
    )
    options = m.options if m.options_changed is None else {k: m.options[k] for k in m.options_changed}
    said = [f"{k}={public(v)}" for k, v in sorted(options.items())]
    changed = "" if m.options_changed is None else " other than its defaults"
    text.append(f"Reader options{changed}: {', '.join(said) or 'none'}.")
    return " ".join(text) + _encoders(store, cited)


def _encoders(store: Store, cited: Bibliography) -> str:
    """Published software whose output is in the store."""
    text = ""
    if any("minilm" in x.encoder.lower() for x in store.modalities):
        text += f" Text was embedded with a pre-trained sentence encoder{cited.cite('minilm')}."
    sources = store.dictionary["source_file"].drop_nulls().unique().to_list()
    if any("raw T1 scans" in s for s in sources):
        came_stripped = store.manifest.options.get("image_brain") == "stripped"
        first = "came skull-stripped and were" if came_stripped else f"were skull-stripped{cited.cite('deepbet')},"
        text += (
            f" T1 scans {first} corrected for intensity inhomogeneity{cited.cite('n4')}, segmented"
            f"{cited.cite('atropos')} and warped to template space{cited.cite('ants')}."
        )
    return text


def split_sentences(store: Store, scheme: str) -> str:
    """How the samples were split, and what was fitted on the training part."""
    entry = next(s for s in store.manifest.splits if s["scheme"] == scheme)
    counts = " / ".join(f"{entry['counts'].get(part, 0):,}" for part in PARTS)
    stratified = f", stratified by {entry['stratify']}" if entry.get("stratify") else ""
    how = {"column": "made as the data set prescribes", "id list": "given as a list of ids"}.get(
        entry["method"], f"drawn by subject{stratified} (seed {entry.get('seed', 0)})"
    )
    said = f"; {entry['description']}" if entry.get("description") else ""
    title = short_title(store)
    return f"The split {scheme} of {title} was {how} ({counts} samples for training, validation and test{said})."


def _fitted(o: TransformOptions) -> dict[str, str]:
    """What is fitted to a feature, by its kind in the dictionary (mrpipe.transforms.features)."""
    clipped = f" and clipped to ±{o.clip:g}" if o.clip else ""
    scaled = {"standard": f"standardised{clipped}", "minmax": "scaled to [−1, 1]", "none": "not scaled"}[o.scale]
    comma = "," if o.scale == "standard" and o.clip else " and"
    pruned = f"pruned by linkage disequilibrium (r² > {o.ld_r2:g} in windows of {o.ld_window})"
    return {
        "numeric": f"numbers were filled with the training {o.impute}{comma} {scaled}",
        "embedding": f"embeddings were {scaled}",
        "categorical": "categories were one-hot encoded, unknown ones as the most frequent",
        "count": f"counts became TF-IDF weights reduced to {o.svd_dim} dimensions by a truncated SVD",
        "pixel": "pixels and voxels were standardised by channel",
        "genotype": f"SNPs were {pruned if o.ld_r2 else 'not pruned'} and calls that were not made took the most "
        "frequent genotype",
        "event": f"items recorded for at least {100 * o.event_floor:g}% of the training samples (at most "
        f"{o.event_cap:,}) entered the vocabulary of events, averaged over {o.event_step_hours:g} h and standardised",
        "summary": "summaries of events were standardised",
    }


def transform_sentences(
    stores: Sequence[Store], views: Mapping[str, set[str]], options: Sequence[Mapping[str, Any]]
) -> str:
    """What was fitted on training rows, for the modalities in use.

    Args:
        views: store id → names of the modalities that a run saw.
        options: transform options of the runs that differ from their defaults, each set once.
    """
    kinds: list[str] = []
    for store in stores:
        seen = views.get(store.store_id, set())
        rows = store.dictionary
        kinds += [k for m, k in rows.select("modality", "kind").unique(maintain_order=True).iter_rows() if m in seen]
    text, usual = "All transforms were fitted on the training samples of the split alone", list[str]()
    for number, changed in enumerate(sorted(options, key=len)):
        fitted = _fitted(TransformOptions(**changed))
        done = [fitted[k] for k in dict.fromkeys(kinds) if k in fitted]
        named = f" with {', '.join(f'{k}={v}' for k, v in sorted(changed.items()))}" if changed else ""
        if number:
            text, done = f"{text} Other runs had transforms{named}", [d for d in done if d not in usual]
        else:
            text, usual = f"{text}{named}", done
        text += f": {'; '.join(done)}." if done else "."
    return text


def missingness_sentence(masks: Sequence[dict[str, Any] | None]) -> str:
    """What was hidden on purpose, over all seeds; the same mask file for all methods."""
    hidden = [m for m in masks if m]
    if not hidden:
        return "No modality was hidden; samples have what was observed."
    said = []
    for m in hidden:
        again = (
            ""
            if m["mechanism"] in ("timestep_drop", "gaussian")
            else (", drawn again until at least one was left" if m["redraw"] else ", even if none was left")
        )
        text = _MECHANISMS.get(m["mechanism"], "{mechanism}, p={p:g}").format(**m) + again
        if text not in said:
            said.append(text)
    seeds = sorted({m["seed"] for m in hidden})
    each = f"for each of the mask seeds {listed([str(s) for s in seeds])}"
    drawn = f"once (mask seed {seeds[0]})" if len(seeds) == 1 else f"once {each}"
    also = " (some runs: nothing hidden)" if len(hidden) < len(masks) else ""
    return (
        f"Simulated missingness: {'; or '.join(said)}{also}. It was drawn {drawn}, in all parts of the split, and "
        "shared by all methods."
    )
