"""Simulated Enrico export: the provider's files, names, codes and defects, from a latent state with known truth.

The topic of a screen determines a layout and a look. Each layout is shared by two topics and no two topics share both,
so a wireframe (layout only) narrows the topic down to two, and a screenshot (look, and a blurred layout) resolves it.
`layout_noise` and `look_noise` are the probabilities of drawing them at random instead, which limits the accuracy of
any method. The truth holds the exact posterior of the topic given the layout, the look, or both.
"""

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.constants import constants
from mrpipe.datasets.enrico import tables as enrico
from mrpipe.datasets.enrico.hierarchy import parse_hierarchy, render
from mrpipe.datasets.enrico.simulate.layouts import ICON_COLOURS, LAYOUTS, Node, build_tree, node
from mrpipe.datasets.enrico.simulate.paint import LOOKS, paint_screenshot
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import write_best
from mrpipe.keyed import generator, id_keys, uniform
from mrpipe.options import option
from mrpipe.store.parquet import write_frame, write_text

LANDSCAPE = ("72201", "19141")
EMPTY_METADATA = 296 / 1460

_TABLES = constants(__file__, "export.json")
# Topic → layout and look; each pair of layout and look occurs once.
STATES = dict(sorted((topic, (layout, look)) for layout, topic, look in _TABLES["topics"]))
# Kinds of issues in the published issues.csv: source, description, severity, and how many of the 1,460 screens.
ISSUE_KINDS: tuple[tuple[str, str, str, int], ...] = _TABLES["issues"]


@dataclass(frozen=True, kw_only=True)
class EnricoSimulation:
    n_screens: int = option(160, "number of screens, at least 20; 1460 reproduces the published topic counts")
    seed: int = option(0, "random seed")
    scale: float = option(1.0, "image size relative to 540 x 960")
    zipped: bool = option(False, "write the four folders as zip archives, as in the download")
    layout_noise: float = option(0.12, "fraction of screens whose layout is independent of the topic")
    look_noise: float = option(0.15, "fraction of screens whose look is independent of the topic")


def topic_counts(n: int) -> dict[str, int]:
    """Distribute n screens over topics in the published proportions (largest remainder), at least one per topic."""
    if n < len(enrico.TOPICS):
        raise UsageError(f"simulation of enrico: n_screens={n} must be at least {len(enrico.TOPICS)}, one per topic")
    total = sum(enrico.TOPIC_COUNTS.values())
    quota = {t: n * c / total for t, c in enrico.TOPIC_COUNTS.items()}
    counts = {t: max(1, int(q)) for t, q in quota.items()}
    while sum(counts.values()) != n:
        # Add to the topic furthest below its quota, or take from the topic furthest above it that has more than one.
        step = 1 if sum(counts.values()) < n else -1
        able = [t for t in enrico.TOPICS if step > 0 or counts[t] > 1]
        chosen = max(able, key=lambda t: (step * (quota[t] - counts[t]), t))
        counts[chosen] += step
    return counts


def likelihoods(options: EnricoSimulation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(layout | topic), shape (20, 10), and P(look | topic), shape (20, 5)."""
    layouts, looks = list(LAYOUTS), list(LOOKS)
    layout_TL = np.full((len(enrico.TOPICS), len(layouts)), options.layout_noise / len(layouts))
    look_TK = np.full((len(enrico.TOPICS), len(looks)), options.look_noise / len(looks))
    for i, topic in enumerate(enrico.TOPICS):
        layout, look = STATES[topic]
        layout_TL[i, layouts.index(layout)] += 1 - options.layout_noise
        look_TK[i, looks.index(look)] += 1 - options.look_noise
    return layout_TL, look_TK


def _posterior(joint_TS: NDArray[np.float64]) -> dict[str, Any]:
    """Best achievable accuracy, and mutual information in bits, of a joint distribution of topic and state."""
    product = joint_TS.sum(1, keepdims=True) * joint_TS.sum(0, keepdims=True)
    ratio = np.log2(np.where(joint_TS > 0, joint_TS / np.where(product > 0, product, 1), 1))
    return {"bayes_accuracy": float(joint_TS.max(0).sum()), "information_bits": float((joint_TS * ratio).sum())}


def _pack(folder: Path) -> None:
    """Replace a folder by an archive with one top-level folder and fixed dates."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.name}", (2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    shutil.rmtree(folder)


def _draw_states(options: EnricoSimulation) -> pl.DataFrame:
    """Draw screen ids, topics, layouts, looks and the continuous state, in table order."""
    n, rng = options.n_screens, generator(options.seed, "enrico.screens")
    topics = np.repeat(enrico.TOPICS, list(topic_counts(n).values()))
    special = [*enrico.MULTIBENCH_IGNORES, *LANDSCAPE]
    others = np.setdiff1d(np.arange(124, 72200).astype(str), special)
    ids = rng.permutation(np.array([*special, *rng.choice(others, n - len(special), replace=False)]))
    topics = rng.permutation(topics)
    keys = id_keys(ids.tolist())
    index = np.searchsorted(enrico.TOPICS, topics)
    layout_TL, look_TK = likelihoods(options)
    u = uniform(keys, options.seed, "enrico.state", 6)
    layout = (u[:, :1] > np.cumsum(layout_TL, axis=1)[index]).sum(1).clip(max=len(LAYOUTS) - 1)
    look = (u[:, 1:2] > np.cumsum(look_TK, axis=1)[index]).sum(1).clip(max=len(LOOKS) - 1)
    names = {"layout": np.array(list(LAYOUTS))[layout], "look": np.array(list(LOOKS))[look]}
    continuous = dict(zip(("density", "margin", "hue", "contrast"), u[:, 2:].T, strict=True))
    return pl.DataFrame({"sample_id": ids, "topic": topics, **names, **continuous})


def _draw_issues(states: pl.DataFrame, options: EnricoSimulation) -> list[tuple[str, str, str, str]]:
    """Rows of issues.csv: the special screens, then the published kinds in proportion, each at least once."""
    rows = [(s, "wireframe", "not available", "high") for s in enrico.MULTIBENCH_IGNORES]
    rows += [(s, "screenshot", "landscape mode", "high") for s in LANDSCAPE]
    special = {s for s, *_ in rows}
    ordinary = [s for s in states["sample_id"] if s not in special]
    free = iter(generator(options.seed, "enrico.issues").permutation(ordinary).tolist())
    for source, description, severity, count in ISSUE_KINDS:
        for _ in range(max(1, round(count * options.n_screens / 1460))):
            if (screen_id := next(free, None)) is not None:
                rows.append((screen_id, source, description, severity))
    return rows


def _faulty(tree: Node, other: Node, description: str) -> Node:
    """The tree shown by the wireframe, or written as the hierarchy, of a screen with this issue."""
    width, height = tree["bounds"][2:]
    children: list[Node] = tree.get("children", [])

    def moved(n: Node) -> Node:
        x0, y0, x1, y1 = n["bounds"]
        return n | {"bounds": [x0, y0 + 120, x1, y1 + 120], "children": [moved(c) for c in n.get("children", [])]}

    match description:
        case "complete mismatch":
            return other
        case "huge occluding element":
            return tree | {"children": [*children, node("Image", 0, height * 0.2, width, height * 0.9)]}
        case "systematic vertical offset":
            return moved(tree)
        # The hierarchy still contains a closed drawer on top of the screen.
        case "overlapping sidebar":
            return tree | {"children": [*children, node("Drawer", 0, 84, width * 0.8, height - 168)]}
        case "missing bg image":
            return tree | {"children": [c for c in children if c.get("componentLabel") != "Background Image"]}
    return tree


def _metadata(u: float, app: int) -> dict[str, Any]:
    """Play Store metadata of an app; an empty object for the fraction of apps that are no longer listed."""
    if u < EMPTY_METADATA:
        return {}
    categories = ("COMMUNICATION", "TOOLS", "SHOPPING", "HEALTH_AND_FITNESS", "MUSIC_AND_AUDIO")
    page = {"title": f"App {app}", "category": [categories[app % 5]], "score": "4.1", "reviews": 10 + app}
    return page | {"free": True, "installs": "10,000+", "app_id": f"com.example.app{app}"}


def _write_truth(
    truth: Path, states: pl.DataFrame, issues: Sequence[tuple[str, ...]], options: EnricoSimulation
) -> None:
    layout_TL, look_TK = likelihoods(options)
    prior_T = np.array([enrico.TOPIC_COUNTS[t] for t in enrico.TOPICS]) / sum(enrico.TOPIC_COUNTS.values())
    joint_TLK = prior_T[:, None, None] * layout_TL[:, :, None] * look_TK[:, None, :]
    layout = [list(LAYOUTS).index(v) for v in states["layout"]]
    look = [list(LOOKS).index(v) for v in states["look"]]
    by_layout, by_look = joint_TLK.sum(2)[:, layout].T, joint_TLK.sum(1)[:, look].T
    by_both = joint_TLK[:, layout, look].T
    best = {"bayes_layout": by_layout, "bayes_look": by_look, "bayes_both": by_both}
    frame = states.with_columns(pl.Series(n, np.array(enrico.TOPICS)[p.argmax(axis=1)]) for n, p in best.items())
    write_frame(truth / "truth.parquet", frame.sort("sample_id"))
    # A wireframe shows the layout. A screenshot shows both but blurs the layout, so its posterior is an upper bound.
    shown = {("wireframe",): by_layout, ("screenshot",): by_both, ("screenshot", "wireframe"): by_both}
    posterior = {names: p / p.sum(axis=1, keepdims=True) for names, p in shown.items()}
    write_best(truth, "topic", enrico.TOPICS, frame["sample_id"].to_list(), posterior)
    model = {
        "states": {t: {"layout": s[0], "look": s[1]} for t, s in STATES.items()},
        "layout": _posterior(joint_TLK.sum(2)),
        "look": _posterior(joint_TLK.sum(1)),
        "both": _posterior(joint_TLK.reshape(len(enrico.TOPICS), -1)),
        "wireframes_with_issues": sorted(i for i, source, *_ in issues if source in ("wireframe", "hierarchy")),
    }
    write_text(truth / "model.json", json.dumps(model, indent=1) + "\n")


def _legend_json(colours: Mapping[str, str]) -> str:
    """A legend as published, including its off-by-one `rgb` entries."""
    channels = {n: [int(h[i : i + 2], 16) for i in (1, 3, 5)] for n, h in colours.items()}
    legend = {n: {"rgb": [c + (c > 0) for c in channels[n]], "hex": h} for n, h in colours.items()}
    return json.dumps(legend, indent=2) + "\n"


def simulate_export(raw: Path, truth: Path, options: EnricoSimulation) -> None:
    """Write the export to `raw`; truth.parquet (latent state, best guesses), best.parquet and model.json to `truth`.

    Raises:
        UsageError: if there are fewer screens than topics, or scale or noise are out of range.
    """
    for name, low, high in (("scale", 0.01, 4.0), ("layout_noise", 0.0, 1.0), ("look_noise", 0.0, 1.0)):
        value = getattr(options, name)
        if not low <= value <= high:
            raise UsageError(f"simulation of enrico: {name}={value} must be between {low} and {high}")
    raw.mkdir(parents=True, exist_ok=True)
    states = _draw_states(options)
    issues = _draw_issues(states, options)
    kinds = {screen_id: (source, description) for screen_id, source, description, _ in issues}
    trees: dict[str, Node] = {}
    for row in states.iter_rows(named=True):
        screen_id = row["sample_id"]
        canvas = enrico.CANVAS_SIZE[::-1] if screen_id in LANDSCAPE else enrico.CANVAS_SIZE
        rng = generator(options.seed, "enrico.layout", screen_id)
        trees[screen_id] = build_tree(row["layout"], canvas, rng, row["density"], row["margin"])

    legend = enrico.Legend(components=enrico.COMPONENT_COLOURS, icons=ICON_COLOURS)
    folders = [raw / name for name in enrico.FOLDERS]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    screenshots, wireframes, hierarchies, metadata = folders
    drawn = dict(zip(states["sample_id"], uniform(id_keys(states["sample_id"]), options.seed, "app", 2), strict=True))
    ordered = sorted(trees)
    neighbour = dict(zip(ordered, [*ordered[1:], ordered[0]], strict=True))
    width, height = (max(1, round(n * options.scale)) for n in enrico.SCREEN_SIZE)
    for row in states.iter_rows(named=True):
        screen_id = row["sample_id"]
        tree = trees[screen_id]
        source, description = kinds.get(screen_id, ("", ""))
        size = (height, width) if screen_id in LANDSCAPE else (width, height)
        rng = generator(options.seed, "enrico.paint", screen_id)
        shot = paint_screenshot(tree, size, row["look"], row["hue"], row["contrast"], rng)
        if description in ("selector overlay", "loading overlay"):
            shot = shot.point(lambda v: v // 2)
        shot.save(screenshots / f"{screen_id}.jpg", quality=85)
        written = _faulty(tree, tree, description) if source == "hierarchy" else tree
        (hierarchies / f"{screen_id}.json").write_text(json.dumps(written), encoding="utf-8")
        if screen_id not in enrico.MULTIBENCH_IGNORES:
            shown = _faulty(tree, trees[neighbour[screen_id]], description) if source == "wireframe" else tree
            hierarchy = parse_hierarchy(json.dumps(shown).encode(), screen_id)
            canvas_size = size if (hierarchy.canvas[0] > hierarchy.canvas[1]) == (size[0] > size[1]) else size[::-1]
            render(hierarchy, legend, canvas_size).save(wireframes / f"{screen_id}.png")
        empty, app = drawn[screen_id]
        record = _metadata(empty, int(app * options.n_screens))
        (metadata / f"{screen_id}.json").write_text(json.dumps(record), encoding="utf-8")
    if options.zipped:
        for folder in folders:
            _pack(folder)

    states.select(screen_id="sample_id", topic="topic").write_csv(raw / "design_topics.csv")
    columns = ["screen_id", "source", "description", "severity"]
    pl.DataFrame(issues, schema=columns, orient="row").write_csv(raw / "issues.csv")
    write_text(raw / "component_legend.json", _legend_json(enrico.COMPONENT_COLOURS))
    write_text(raw / "icon_legend.json", _legend_json(ICON_COLOURS))
    _write_truth(truth, states, issues, options)
