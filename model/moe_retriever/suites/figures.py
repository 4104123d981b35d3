"""Figures of a suite from its finished cells: routing, gradients, embeddings and cost (Figures 3 to 6 of the paper).

Each suite has figures (SVG and PNG), tables of the plotted numbers, and a page that describes figures and data.
"""

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from moe_retriever.evaluation.analysis import analyse
from moe_retriever.evaluation.run_folders import finished
from moe_retriever.plots import plots
from moe_retriever.plots.cost import PANELS, cost
from moe_retriever.suites.published import missingness_title, origin_sentence, short
from moe_retriever.suites.render import Cell, Line, Page, PageTable, cells_of, heading, number, write
from moe_retriever.suites.spec import SuiteColumn, SuiteSpec, add_suite_arguments, read_suite
from moe_retriever.training.gradients import NAME as GRADIENTS
from mrpipe.errors import UsageError
from mrpipe.reading import RUN_AGAIN, read_frame, reading
from mrpipe.store.masks import combination_name, name_parts
from mrpipe.store.parquet import write_csv
from mrpipe.store.reader import Store, open_verified

FLOPS = ("mflop_per_sample", "reference_mflop_per_sample")
# Column of the measurements → title in the table, beside the panels of the figure.
OTHER_COSTS = {
    "reference_ms": "references (ms per training sample)",
    "reference_gflop_per_sample": "references (GFLOPs per training sample)",
    "train_epoch_s": "training (s per epoch)",
    "peak_mb": "peak memory (MB)",
}


@dataclass
class Drawing:
    """A suite, the folders of all runs, of all cost measurements and of the output, and what accompanies the figures.

    Each figure is drawn by a method that takes a column, its store and the name of the column in file names.
    """

    suite: SuiteSpec
    runs: Path
    costs: Path
    out: Path
    grids: list[PageTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def first_runs(self, column: SuiteColumn) -> dict[str, Path]:
        """Row → finished run with the first seed."""
        found = {}
        for row, (label, seeds) in column.cells.items():
            folder = f"{column.experiment}/{label}/seed{seeds[0]}"
            if folder in self.suite.unfinished or not finished(self.runs / folder):
                self.missing.append(folder)
            else:
                found[row] = self.runs / folder
        return found

    def analysed(
        self, what: str, column: SuiteColumn, store: Store, name: str, combination: str | None = None
    ) -> Iterator[tuple[str, str, Path]]:
        """Run an analysis; yield each row with the name and the folder of its files, and note the rows without result.

        The name is that of the column and, if several rows have a result, the folder of the runs.
        """
        found = {}
        for row, run in self.first_runs(column).items():
            out = self.out / what / name / run.parent.name
            try:
                analyse([run], store, out, [what], combination=combination, say=self.missing.append)
                found[row] = out
            except UsageError as error:
                self.missing.append(f"{_titled(column)}, {row}, {what}: {' '.join(str(error).split())}")
        for row, out in found.items():
            yield row, name if len(found) == 1 else f"{name}-{out.name}", out

    def routing(self, column: SuiteColumn, store: Store, name: str) -> None:
        """Figure 3: modality combinations of the store, expert visits by combination, and combinations by expert."""
        counts, names, n = store.manifest.pattern_counts, [m.name for m in store.modalities], store.manifest.n_samples
        plots.save(plots.availability(counts, names), self.out / f"a-{name}-patterns", column.data)
        self.notes.append(f"{column.data}: {len(counts)} modality combinations in {n:,} samples.")
        for row, of_row, out in self.analysed("routing", column, store, name):
            selection, shares = (pl.read_csv(out / f"{key}.csv") for key in ("expert_selection", "combination_shares"))
            title = f"{_titled(column)}, {row}"
            plots.save(plots.expert_selection(selection), self.out / f"b-{of_row}-expert-selection", title)
            plots.save(plots.combination_shares(shares), self.out / f"c-{of_row}-combination-shares", title)
            said = f"routing of {row} on the test split, for the run with the first seed."
            self.notes.append(f"{_titled(column)}: {said}")

    def gradients(self, column: SuiteColumn, store: Store, name: str) -> None:
        """Figure 5: gradient cosine similarity of modality pairs during training, one column per method."""
        frames = {}
        for row, run in self.first_runs(column).items():
            path = run / GRADIENTS
            if path.is_file() and not (frame := read_frame(path)).is_empty():
                frames[row] = frame
            else:
                self.missing.append(f"{_titled(column)}, {row}: no recorded gradients (option gradient_rows)")
        if not frames:
            return
        plots.save(plots.gradient_similarity(frames), self.out / f"{name}-gradients", _titled(column))
        everything = pl.concat(f.with_columns(pl.lit(row).alias("row")) for row, f in frames.items())
        write_csv(self.out / f"{name}-gradients.csv", everything)
        means = everything.group_by("row", "kind", "first", "second", maintain_order=True).agg(pl.col("cosine").mean())
        pairs = list(dict.fromkeys(f"{a} · {b}" for a, b in means.select("first", "second").iter_rows()))
        for kind in dict.fromkeys(means["kind"]):
            lines = []
            for row in frames:
                cosines = means.filter(kind=kind, row=row).to_dicts()
                mine = {f"{r['first']} · {r['second']}": r["cosine"] for r in cosines}
                lines.append(Line("method", row, cells_of((_three_digits(mine.get(pair)) for pair in pairs), "ours")))
            words = plots.GRADIENT_KINDS.get(kind, kind)
            caption = f"{_titled(column)}: gradient cosine similarity ({words}), mean over epochs"
            self.grids.append(PageTable(caption, ("method", *pairs), tuple(lines)))

    def embedding(self, column: SuiteColumn, store: Store, name: str) -> None:
        """Figure 6: t-SNE of samples that lack one modality, before and after retrieval."""
        combination = combination_name(m for m in column.modalities if m != self.suite.missing)
        for row, of_row, out in self.analysed("embedding", column, store, name, combination):
            for suffix in ("svg", "png"):
                shutil.copyfile(out / f"embedding.{suffix}", self.out / f"{of_row}-embedding.{suffix}")
            lines = []
            for r in pl.read_csv(out / "closeness.csv").to_dicts():
                measures = cells_of((_three_digits(r[k]) for k in ("cosine", "silhouette")), "ours")
                lines.append(Line("method", f"{r['stage']}, {r['label']}", (Cell(str(r["n"]), "count"), *measures)))
            caption = (
                f"{_titled(column)}, {row}: within-class similarity of embeddings of samples with {combination} only"
            )
            header = ("stage, class", "samples", "cosine similarity", "silhouette")
            self.grids.append(PageTable(caption, header, tuple(lines)))

    def cost(self, column: SuiteColumn, store: Store, name: str) -> None:
        """Figure 4: inference time, FLOPs and parameters by modality configuration."""
        frames = []
        for row, (label, _) in column.cells.items():
            path = self.costs / column.experiment / f"{label}.csv"
            if path.is_file():
                with reading(path, "a table of `mrpipe benchmark`", RUN_AGAIN):
                    frame = pl.read_csv(path, schema_overrides=dict.fromkeys(FLOPS, pl.Float64))
                frames.append(frame.with_columns(pl.lit(row).alias("method")))
            else:
                self.missing.append(f"{_titled(column)}, {row}: not measured")
        if not frames:
            return
        frame = pl.concat(frames).with_columns(
            (1000 / pl.col("test_samples_per_s")).alias("test_ms"),
            (1000 * pl.col("reference_s_per_sample")).alias("reference_ms"),
            *((pl.col(n) / 1000).alias(n.replace("mflop", "gflop")) for n in FLOPS),
            (pl.col("parameters") / 1e6).alias("parameters_m"),
            pl.col("modalities").map_elements(lambda m: short(column.dataset, name_parts(m)), return_dtype=pl.String),
        )
        write_csv(self.out / f"{name}-cost.csv", frame)
        plots.save(cost(frame, list(column.cells)), self.out / f"{name}-cost", column.data)
        full, measured = frame.filter(modalities=short(column.dataset, column.modalities)), PANELS | OTHER_COSTS
        values = {r["method"]: [_three_digits(r[k]) for k in measured] for r in full.to_dicts()}
        lines = tuple(Line("method", method, cells_of(texts, "ours")) for method, texts in values.items())
        rate = full["hidden"][0] if "hidden" in full.columns else None
        mask = column.missingness and {**column.missingness, "hidden": rate}
        hidden = "" if mask is None else f", {missingness_title(mask)}"
        header = ("method", *measured.values())
        self.grids.append(PageTable(f"{column.data}, all modalities{hidden}", header, lines))
        self.notes.append(
            "FLOPs are counted for a prediction (a multiply-add counts as two). References are everything that a "
            "method computes from the training samples before its first prediction; their cost is stated per training "
            "sample and is not part of a prediction. Times depend on the machine and its load during the measurement."
        )


def draw(drawing: Drawing) -> Page:
    """Draw the figures of a suite; its page lists those that could not be drawn."""
    suite, out = drawing.suite, drawing.out
    there = {c.store for c in suite.columns if not c.absent and (Path(c.store) / "manifest.json").is_file()}
    columns = [c for c in suite.columns if c.store in there and not c.absent]
    stores = {path: open_verified(path) for path in sorted(there)}
    for ending, suffix in itertools.product(plots.SHOWN, ("svg", "png", "csv")):
        # The report includes all figures in the folder, so figures of an earlier suite.json are removed.
        for path in out.glob(f"*-{ending}.{suffix}"):
            path.unlink()
    kinds = {"patterns_and_routing": drawing.routing, "gradients": drawing.gradients}
    kinds |= {"embedding": drawing.embedding, "cost": drawing.cost}
    for column, name in zip(columns, _names(columns), strict=True):
        kinds[suite.figure](column, stores[column.store], name)
    for column in suite.columns:
        if column.absent:
            drawing.missing.append(f"{_titled(column)}: the store has no {' and no '.join(column.absent)}")
        elif column.store not in there:
            drawing.missing.append(f"{_titled(column)}: no store at {column.store}")
    pairs = dict.fromkeys((c.data, c.store) for c in columns)
    known = [(data, stores[path].manifest) for data, path in pairs]
    page = Page(
        identifier=suite.name,
        title=heading(suite.name, suite.title),
        simulated=any(s.manifest.origin == "simulated" for s in stores.values()),
        origins=tuple(origin_sentence(data, m.origin, m.store_id, suite.size) for data, m in known),
        overview=tuple(drawing.grids),
        details=(),
        notes=tuple(dict.fromkeys(drawing.notes)),
        faults=tuple(drawing.missing),
    )
    write(page, out, ("table.html", "table.md"))
    return page


def _names(columns: list[SuiteColumn]) -> list[str]:
    """File names for the figures of each column: data set and view or, if not unique, the folder of its runs."""
    views = [f"{c.dataset}-{c.view.replace('+', '')}" for c in columns]
    return [c.experiment if views.count(view) > 1 else view for c, view in zip(columns, views, strict=True)]


def _titled(column: SuiteColumn) -> str:
    return f"{column.data}, {column.name}"


def _three_digits(value: float | None) -> str:
    return "–" if value is None else number(value, ".3g")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    parser.add_argument("--costs", type=Path, required=True, metavar="FOLDER", help="folder of all cost measurements")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")


def run(args: argparse.Namespace) -> None:
    page = draw(Drawing(read_suite(args.suite), args.runs, args.costs, args.out))
    pictures = sorted(args.out.glob("*.svg"))
    print(json.dumps({"pictures": [p.name for p in pictures], "missing": list(page.faults)}, indent=1))
