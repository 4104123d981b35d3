"""The methods section of a paper, generated from run folders and store manifests.

Every statement is derived from these files, so a different run gives a different text. Numbers in brackets cite the
accompanying references.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from moe_retriever.catalogue import about
from moe_retriever.data.scores import METRIC_NAMES
from moe_retriever.evaluation.run_folders import with_hidden
from moe_retriever.report.methods_data import (
    Bibliography,
    listed,
    missingness_sentence,
    plural,
    split_sentences,
    store_sentences,
    transform_sentences,
)
from moe_retriever.report.runs import ReportedRun
from moe_retriever.report.stores import public
from moe_retriever.suites.published import method_title, published_rows, task_title
from mrpipe.store.reader import Store

# Options that the text states for every trained method, in this order.
_STATED = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "epochs": "maximum number of epochs {}",
    "patience": "patience",
    "dropout": "dropout",
    "hidden": "token dimension",
    "tokens": "tokens per modality",
    "drop_modalities": "modality dropout during training",
    "class_weight": "class weights",
}
# Options that are stated only if they differ from these values.
_UNUSUAL = {"drop_modalities": "0", "class_weight": "none"}
MOST_SETTINGS = 12
MOST_CLASSES = 8


@dataclass(frozen=True)
class MethodsText:
    """Paragraphs (heading, text) and the references they cite, ordered by number."""

    paragraphs: list[tuple[str, str]]
    references: list[str]


def methods_text(
    runs: Sequence[ReportedRun], stores: Sequence[Store], searches: Sequence[dict[str, Any]] = ()
) -> MethodsText:
    """Generate the text.

    Args:
        runs: all runs of the page.
        stores: all stores of the page; the cohort is not described for runs on other stores.
        searches: contents of best.json of the hyper-parameter searches.
    """
    cited = Bibliography()
    paragraphs = [("Data", store_sentences(store, cited)) for store in stores]
    if runs:
        paragraphs += [
            ("Task and protocol", _protocol(runs, stores)),
            ("Methods", _methods(runs, cited)),
            ("Training", _training(runs, searches, cited)),
            ("Evaluation", _evaluation(runs, cited)),
        ]
    paragraphs.append(("Software", _software(runs, stores, cited)))
    return MethodsText(paragraphs, cited.entries)


def _protocol(runs: Sequence[ReportedRun], stores: Sequence[Store]) -> str:
    """Splits and transforms, and for each task its inputs, sample sizes and simulated missingness."""
    by_id = {store.store_id: store for store in stores}
    views: defaultdict[str, set[str]] = defaultdict(set)
    questions: defaultdict[tuple[str, str, str], list[ReportedRun]] = defaultdict(list)
    for run in runs:
        m = run.metrics
        views[m["store_id"]] |= set(m["modalities"])
        questions[m["store_id"], m["task"], m["scheme"]].append(run)
    text = []
    for scheme, store_id in dict.fromkeys((scheme, store_id) for store_id, _, scheme in questions):
        if store_id in by_id:
            text.append(split_sentences(by_id[store_id], scheme))
    transforms = {json.dumps(run.transforms, sort_keys=True): run.transforms for run in runs}
    text.append(transform_sentences(stores, views, list(transforms.values())))
    for (_, task, scheme), own in questions.items():
        m = own[0].metrics
        seen = list(dict.fromkeys(" + ".join(run.metrics["modalities"]) for run in own))
        n = m["n"]
        numbers = f"{n['train']:,} / {n['val']:,} / {n['test']:,} labelled samples for training / validation / test"
        sizes = f", {numbers}" if len(seen) == 1 else ""
        classes = m["classes"]
        of_task = ", ".join(classes) if len(classes) <= MOST_CLASSES else f"{len(classes)} classes"
        target = f"{task_title(task)} ({of_task or 'a number'})"
        data = own[0].dataset
        text.append(f"For {data}, the task was to predict {target} from {'; '.join(seen)} (split {scheme}{sizes}).")
        without = max(sum(run.metrics["n_without_modality"].values()) for run in own)
        if without:
            text.append(f"Samples without any of these modalities (up to {without:,}) were excluded from all splits.")
        masks = [with_hidden(run.metrics["mask"] or None, [run.metrics]) for run in own]
        text.append(missingness_sentence(list({json.dumps(m, sort_keys=True): m for m in masks}.values())))
    return " ".join(text)


def _methods(runs: Sequence[ReportedRun], cited: Bibliography) -> str:
    presets: defaultdict[str, set[str]] = defaultdict(set)
    for run in runs:
        presets[run.method].add(run.metrics["preset"])
    compared: list[str] = []
    controls: list[str] = []
    for name, used in presets.items():
        known = about(name)
        preset = f"preset{'s' * (len(used) > 1)} {listed(sorted(used))}"
        said = f"({preset}): {known.summary.removesuffix('(control)').strip()}".removesuffix(": ")
        (controls if known.control else compared).append(f"{method_title(name)}{cited.cite(known.citation)} {said}")
    text = f"The following methods were compared: {'; '.join(compared)}." if compared else ""
    return f"{text} The controls were {'; '.join(controls)}.".strip() if controls else text


def _training(runs: Sequence[ReportedRun], searches: Sequence[dict[str, Any]], cited: Bibliography) -> str:
    trained = [run for run in runs if "epochs" in run.metrics["training"]]
    text = []
    if trained:
        losses = {True: "cross-entropy", False: "squared error of the standardised target"}
        loss = " or the ".join(dict.fromkeys(losses[bool(run.metrics["classes"])] for run in trained))
        adam, stated = cited.cite("adam"), _stated(trained)
        text.append(f"Neural methods were trained with Adam{adam} to minimise the {loss} ({stated}).")
        metrics = dict.fromkeys(run.config["common"]["select_metric"] for run in trained)
        chosen = " or ".join(METRIC_NAMES.get(m, m) for m in metrics)
        works = cited.cite(*_encoder_works(trained))
        text.append(f"The weights of the epoch with the best validation {chosen} were used.")
        text.append(f"For a given seed, all methods with modality encoders start from the same encoder weights{works}.")
    fitted = {run.method: run.metrics["training"]["chosen"] for run in runs if run.metrics["training"].get("chosen")}
    for method, chosen in fitted.items():
        # An entry named after the method is a result, not a selected option.
        names = [k for k in chosen if k not in ("validation", "rounds", "folds", "trials", "mean", method)]
        on = f"by {chosen['folds']}-fold cross-validation" if "folds" in chosen else "on the validation samples"
        text.append(f"For {method_title(method)}, {listed(names)} was selected {on}." if names else "")
    text.append(_searched(searches))
    if changed := _changed(runs):
        more = f" and {plural(len(changed) - MOST_SETTINGS, 'further option')}" if len(changed) > MOST_SETTINGS else ""
        text.append(f"Other options that differ from the presets: {', '.join(changed[:MOST_SETTINGS])}{more}.")
    if any(run.changed for run in runs):
        text.append("The table of settings has the options of each method.")
    numbers = listed([str(s) for s in sorted({run.seed for run in runs})])
    text.append(f"Random seeds (initial weights, batches, dropout and retrieval): {numbers}.")
    return " ".join(filter(None, text))


def _stated(trained: Sequence[ReportedRun]) -> str:
    """Options with the values of the trained methods."""
    text = []
    for key, name in _STATED.items():
        options = dict.fromkeys(run.config["common"][key] for run in trained)
        values = [option if isinstance(option, str) else f"{option:g}" for option in options]
        if values != [_UNUSUAL.get(key)]:
            text.append(name.format(" or ".join(values)) if "{}" in name else f"{name} {' or '.join(values)}")
    return ", ".join(text)


def _encoder_works(trained: Sequence[ReportedRun]) -> list[str]:
    works = []
    for run in trained:
        kinds = {m["kind"] for m in run.config["data"]["modalities"]}
        common = run.config["common"]
        if "sequence" in kinds:
            works.append(common["sequence_encoder"])
        if "image" in kinds:
            works.append("vgg")
    return list(dict.fromkeys(works))


def _searched(searches: Sequence[dict[str, Any]]) -> str:
    if not searches:
        return (
            "No hyper-parameter search is associated with these runs; apart from the options stated here, those of the "
            "presets were used."
        )
    by_budget: defaultdict[str, list[str]] = defaultdict(list)
    for s in searches:
        space = ", ".join(f"{k} ∈ {{{', '.join(map(str, v))}}}" for k, v in sorted(s["space"].items()))
        space = space or ("settings of its own" if s["n_trials"] > 1 else "preset only")
        metric = METRIC_NAMES.get(s["metric"], s["metric"])
        budget = f"{plural(s['n_trials'], 'trial')} ({space}), selected by validation {metric}"
        if (name := method_title(s["method"])) not in by_budget[budget]:
            by_budget[budget].append(name)
    said = [f"{listed(sorted(methods))}: {budget}" for budget, methods in by_budget.items()]
    return f"Hyper-parameters were selected on the validation samples ({'; '.join(said)})."


def _changed(runs: Sequence[ReportedRun]) -> list[str]:
    """`option=value` for options that differ from the preset, the most common first."""
    # Methods without gradient training ignore the options of encoders and training.
    found = Counter(
        f"{key}={public(value)}"
        for run in runs
        for key, value in run.changed.items()
        if ("epochs" in run.metrics["training"] or key in run.config["options"])
        and key not in (*_STATED, "select_metric")
    )
    return [option for option, _ in found.most_common()]


def _evaluation(runs: Sequence[ReportedRun], cited: Bibliography) -> str:
    resamples = sorted({run.metrics["bootstrap"] for run in runs})
    draws = sorted({run.metrics["draws"] for run in runs})
    metrics = [title for m, title in METRIC_NAMES.items() if any(m in run.metrics["metrics"] for run in runs)]
    text = (
        "Test samples were predicted once, independently of each other. The metrics are "
        f"{listed(metrics)}{cited.cite('ece') if 'ECE' in metrics else ''}, over all test samples and by combination "
        "of observed modalities."
    )
    if any(run.metrics["decision"]["temperature"] != 1 for run in runs):
        text += " Probabilities were calibrated by a temperature fitted on the validation samples."
    if rules := sorted({run.metrics["decision"]["rule"] for run in runs} - {"0.5"}):
        text += f" Decision threshold: {listed(rules)}, on the validation samples unless fixed."
    if any(resamples):
        text += (
            f" Intervals are 95% percentile intervals from {listed([f'{n:,}' for n in resamples])} bootstrap resamples"
            f"{cited.cite('bootstrap')} of the test subjects."
        )
    if len({run.seed for run in runs}) > 1:
        text += " Values after ± are standard deviations over seeds."
    if draws != [1]:
        text += f" Predictions of stochastic methods are averaged over {listed([str(d) for d in draws])} draws."
    exports = [run.metrics for run in runs if run.metrics["origin"] == "export"]
    if any(published_rows(m["dataset"], m["modalities"], m["mask"]) for m in exports):
        paper = cited.cite(about("moe_retriever").citation)
        text += f" Rows marked “as published” repeat the values of the paper{paper}."
    return text


def _software(runs: Sequence[ReportedRun], stores: Sequence[Store], cited: Bibliography) -> str:
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, version in run.cost.get("versions", {}).items():
            versions[name].add(version)
    for store in stores:
        versions["mrpipe"].add(store.manifest.mrpipe_version)
    named = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "polars": "Polars"}
    packages = [
        f"{named.get(name, name)} {listed(sorted(versions[name]))}{cited.cite(name if name in _CITED else '')}"
        for name in ("mrpipe", "python", "torch", "numpy", "scikit-learn", "polars")
        if versions[name]
    ]
    workflow = f"Snakemake {metadata.version('snakemake')}{cited.cite('snakemake')}"
    devices = sorted({str(run.cost["device"]) for run in runs if "device" in run.cost})
    on = f" Models were trained on {listed([d.replace('cpu', 'CPU') for d in devices])}." if devices else ""
    return f"{', '.join([*packages, workflow])}.{on}"


_CITED = frozenset({"torch", "numpy", "scikit-learn"})
