"""Training output: `log.txt`, the progress line, and the text for each epoch."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_retriever.data.load import Data
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import AnyMethod
from moe_retriever.training.checkpoint import EpochRow, Origin
from mrpipe.options import non_default_fields
from mrpipe.store.masks import combination_name

_LOG = logging.getLogger(__name__)


def progress_display() -> Progress:
    """Progress display: description, bar, count, time left (from the mean pace so far) and a free text `state`.

    It is shown if progress is logged, that is at level INFO.
    """
    description, state = TextColumn("{task.description}"), TextColumn("{task.fields[state]}")
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), state)
    console = Console(stderr=True)
    hidden = not _LOG.isEnabledFor(logging.INFO)
    return Progress(*columns, console=console, disable=hidden, transient=True, speed_estimate_period=1e9)


class Log:
    """`log.txt` of a run and its progress line; neither contains subject or sample ids.

    Args:
        path: the log file; truncated if `fresh`.
        progress: display in which this run is one line, e.g. that of a search; default: a display of its own.
    """

    def __init__(self, path: Path, *, n_epochs: int, progress: Progress | None, fresh: bool):
        self._path, self._shared, self._n_epochs = path, progress is not None, n_epochs
        self._progress = progress or progress_display()
        if fresh:
            path.write_text("", encoding="utf-8")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress line."""
        self._task = self._progress.add_task("training", total=self._n_epochs, state="")
        if self._shared:
            try:
                yield
            finally:
                self._progress.remove_task(self._task)
        else:
            with self._progress:
                yield

    def line(self, text: str, level: int = logging.DEBUG) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(text + "\n")
        _LOG.log(level, text)

    def epoch(self, done: int, text: str, state: str) -> None:
        """Write a line to the log and update the progress line."""
        self._progress.update(self._task, completed=done, state=state)
        self.line(f"epoch {done}: {text}")


def describe_epoch(row: EpochRow, metric: str) -> str:
    """Format an epoch's row of the history for the log."""
    text = f"loss {row['train_loss']:.4f}"
    if "val_loss" in row:
        shown = dict.fromkeys(["loss", *(k for k in ("accuracy",) if f"val_{k}" in row), metric])
        text += "".join(f", val {name} {row[f'val_{name}']:.4f}" for name in shown)
    return text if row["selectable"] else f"{text} (warm-up)"


def summarise_epoch(row: EpochRow, metric: str, best: float) -> str:
    """Format an epoch's row of the history briefly, for the progress line."""
    if "val_loss" not in row:
        return f"loss {row['train_loss']:.4f}"
    kept = f", best {abs(best):.4f}" if math.isfinite(best) else ""
    return f"val {metric} {row[f'val_{metric}']:.4f}{kept}"


def opening_line(method: AnyMethod, data: Data, parts: Mapping[str, Rows], origin: Origin) -> str:
    """First line of the log: method, data and sample sizes."""
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in parts.items())
    names = combination_name(data.spec.names)
    n_parameters = sum(p.numel() for p in method.parameters())
    gone = sum(data.n_without.values())
    left_out = f"; {gone} samples have none of these modalities" if gone else ""
    changed = ", ".join(f"{k}={v}" for k, v in non_default_fields(data.fitted.options).items())
    return (
        f"{method.name} ({method.config.preset}, seed {method.config.seed}, {n_parameters:,} parameters) on "
        f"{origin.dataset} {origin.store_id} ({origin.origin}), {names}, {origin.task}/{origin.scheme}: "
        f"{sizes}{left_out}{f'; transforms {changed}' if changed else ''}"
    )


def notes(data: Data, parts: Mapping[str, Rows]) -> list[str]:
    """Properties of the data that limit what the scores of a run mean."""
    found = []
    if data.n_cut:
        found.append(
            f"The split has no labelled validation samples, so {data.n_cut} training samples (whole subjects"
            f"{'' if data.spec.regression else ', stratified by class'}) are used for validation instead."
        )
    for part, rows in parts.items():
        absent = [name for c, name in enumerate(data.spec.classes) if not (data.label[rows] == c).any()]
        name = {"train": "training", "val": "validation"}.get(part, part)
        if not len(rows):
            found.append(f"The {name} split has no labelled samples.")
        elif absent:
            effect = "never predicted" if part == "train" else "left out of the metrics that average over classes"
            found.append(f"No {name} sample has the class {', '.join(absent)}: {effect}.")
    untrained = [name for m, name in enumerate(data.spec.names) if not data.observed[parts["train"], m].any()]
    if untrained:
        found.append(f"No training sample has {', '.join(untrained)}, so nothing can be learned from it.")
    return found
