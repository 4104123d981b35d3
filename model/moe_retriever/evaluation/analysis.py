"""`mrpipe analyse`: tables and figures corresponding to Figures 3, 5 and 6 of the paper, from finished runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from moe_retriever.data.load import Data
from moe_retriever.evaluation import embedding, routing
from moe_retriever.evaluation.evaluate import load_for
from moe_retriever.plots import plots
from moe_retriever.training import gradients
from moe_retriever.training.checkpoint import Trained, load_run
from mrpipe.errors import UsageError
from mrpipe.reading import read_frame
from mrpipe.store.parquet import write_csv, write_frame
from mrpipe.store.reader import Store

# Kinds of analyses and the files of each.
KINDS = {
    "routing": ("visits.parquet", "expert_selection.*", "combination_shares.*"),
    "gradients": ("gradients.csv", "gradients.svg", "gradients.png"),
    "embedding": ("embedding.*", "closeness.csv"),
}


def analyse(
    runs: Sequence[Path],
    store: Store,
    out: Path,
    what: Sequence[str] = tuple(KINDS),
    *,
    part: str = "test",
    combination: str | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write all analyses that apply to the runs, report why the others do not, and return the written files.

    Files, each figure as SVG and PNG: "routing": visits.parquet, expert_selection and combination_shares (CSV and
    figure); "gradients": gradients.csv and figure; "embedding": embedding.parquet, closeness.csv and figure.

    Args:
        runs, store: finished runs and the store that they were trained on.
        out: output folder; with several runs, it has one subfolder per run and one common figure of gradients.
        what: kinds of analysis, a subset of `KINDS`.
        part: split part whose samples are routed and embedded.
        combination: combination of observed modalities whose samples are embedded, e.g. "text+audio"; default: the most
            frequent one with the fewest missing modalities.

    Raises:
        UsageError: no analysis applies.
        DataError: a run is not finished, or was trained on another store.
    """
    written: list[Path] = []
    missing: list[str] = []
    compared: dict[str, pl.DataFrame] = {}
    for run, name in zip(runs, _names(runs), strict=True):
        folder = out if len(runs) == 1 else out / name
        for path in [path for kind in what for pattern in KINDS[kind] for path in folder.glob(pattern)]:
            path.unlink()
        trained = load_run(run, device)
        data = load_for(trained, run, store, device)
        trained.method.prepare(data, data.rows("train"))
        for kind in what:
            try:
                if kind == "routing":
                    written += _routing(trained, data, folder, part)
                elif kind == "embedding":
                    written += _embedding(trained, data, folder, part, combination)
                else:
                    compared[name] = _gradients(run, folder)
                    written.append(folder / "gradients.csv")
            except UsageError as error:
                missing.append(f"{name}, {kind}: {error}")
    if compared:
        written += plots.save(plots.gradient_similarity(compared), out / "gradients")
    if not written:
        raise UsageError("no analysis is possible:\n" + "\n".join(f"  - {m}" for m in missing))
    for line in missing:
        say(f"skipped: {line}")
    return written


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that distinguish all runs."""
    parts = [run.resolve().parts for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-n:]) for p in parts]
        if len(set(names)) == len(runs):
            return names
    raise UsageError("the same run is given twice")


def _routing(trained: Trained, data: Data, out: Path, part: str) -> list[Path]:
    visits = routing.visits_by_combination(trained.method, data, data.rows(part))
    if visits is None:
        raise UsageError(
            f"{trained.method.name} does not route tokens of modality combinations to experts, or every sample of "
            f"the {part} split has all modalities"
        )
    write_frame(out / "visits.parquet", visits)
    written = [out / "visits.parquet"]
    for name in ("expert_selection", "combination_shares"):
        table: pl.DataFrame = getattr(routing, name)(visits)
        write_csv(out / f"{name}.csv", table)
        written += [out / f"{name}.csv", *plots.save(getattr(plots, name)(table), out / name)]
    return written


def _gradients(run: Path, out: Path) -> pl.DataFrame:
    path = run / gradients.NAME
    if not path.is_file():
        raise UsageError("no gradients were recorded during training; train with --set gradient_rows=128")
    frame = read_frame(path)
    if frame.is_empty():
        raise UsageError("no training sample has two modalities, or the method is not trained with gradients")
    write_csv(out / "gradients.csv", frame)
    return frame


def _embedding(trained: Trained, data: Data, out: Path, part: str, combination: str | None) -> list[Path]:
    if trained.method.retrieving is None:
        raise UsageError(f"{trained.method.name} does not retrieve, so there is nothing to compare")
    rows, combination = embedding.choose(data, data.rows(part), combination, trained.config.seed)
    found = embedding.before_and_after(trained.method, data, rows, combination)
    points, close = embedding.tsne(found), embedding.closeness(found)
    write_frame(out / "embedding.parquet", points)
    write_csv(out / "closeness.csv", close)
    missing = ", ".join(found.missing)
    titles = {}
    for stage, words in (("before", f"before retrieval of {missing}"), ("after", f"after retrieval of {missing}")):
        row = close.filter(stage=stage, label="all").row(0, named=True)
        known = "" if row["silhouette"] is None else f", silhouette {row['silhouette']:.3f}"
        titles[stage] = f"{words}\n(within-class cosine {row['cosine']:.3f}{known})"
    figure = plots.before_and_after(points, titles)
    figure.suptitle(f"{len(rows)} samples with {combination.replace('+', ' + ')}", fontsize=10.5)
    return [out / "embedding.parquet", out / "closeness.csv", *plots.save(figure, out / "embedding")]
