"""Learning curves of a run folder."""

from pathlib import Path

from moe_retriever.catalogue import method_title
from moe_retriever.plots import plots
from mrpipe.reading import read_frame, read_json


def write_curves(run: Path) -> None:
    """Write curves.svg and curves.png: losses and validation score per epoch, with the selected epoch marked.

    Methods without epochs have no history and therefore no curves.
    """
    path = run / "history.parquet"
    if path.is_file():
        config = read_json(run / "config.json", keys=("method", "seed", "common"))
        name, history = f"{method_title(config['method'])}, seed {config['seed']}", read_frame(path)
        plots.save(plots.learning_curves({name: history}, score=config["common"]["select_metric"]), run / "curves")
