"""Learning curves of a run folder."""

import json
from pathlib import Path

import polars as pl

from moe_retriever.plots import plots


def write_curves(run: Path) -> None:
    """Write curves.svg and curves.png: losses and validation score per epoch, with the selected epoch marked.

    Methods without epochs have no history and therefore no curves.
    """
    path = run / "history.parquet"
    if path.is_file():
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        name = f"{config['method']}, seed {config['seed']}"
        figure = plots.learning_curves({name: pl.read_parquet(path)}, score=config["common"]["select_metric"])
        plots.save(figure, run / "curves")
