"""Run time and memory of the workflow's jobs, from Snakemake's benchmark files.

A job is named by its dataset or experiment and the wildcards in the file name; file names contain no ids.
"""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.reading import reading

SLOWEST = 10
_FIELDS = {"s": "seconds", "max_rss": "peak_mb", "cpu_time": "cpu_seconds"}
# Rules whose name contains an underscore.
_RULES = ("image_qc", "suite_settings", "suite_report")
# Names of jobs of a suite end in the rule's name; all others begin with it, except those in the folder of the batches.
_OF_A_SUITE = re.compile(r"(?P<what>\w+?)_(?P<rule>[a-z]+)")


def job_of(path: Path, folder: Path) -> tuple[str, str]:
    """Rule and name of a job, from the path of its benchmark file."""
    stem, parents = path.stem, path.relative_to(folder).parent.parts
    if parents[:1] == ("batches",):
        return "cells", "/".join([*parents[1:], stem])
    match = _OF_A_SUITE.fullmatch(stem) if parents[:1] == ("suites",) else None
    rule = match["rule"] if match else next((r for r in _RULES if stem.startswith(r)), stem.split("_")[0])
    what = match["what"] if match else stem.removeprefix(rule).removeprefix("_")
    return rule, " ".join(filter(None, ["/".join(parents), what])) or rule


def read_benchmarks(folder: Path) -> pl.DataFrame:
    """One row per job, sorted by name: `rule, job, seconds, peak_mb, cpu_seconds`; null if not measured.

    For a job that Snakemake repeated, the last line of the file counts.
    """
    rows = []
    for path in sorted(folder.rglob("*.jsonl")):
        with reading(path, "a benchmark of Snakemake", "Remove the file."):
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            said = dict(json.loads(lines[-1])) if lines else {}
        if not lines:
            continue
        rule, job = job_of(path, folder)
        measured = {v: _number(said.get(k)) for k, v in _FIELDS.items()}
        rows.append({"rule": said.get("rule_name") or rule, "job": job, **measured})
    schema = {"rule": pl.String, "job": pl.String, **dict.fromkeys(_FIELDS.values(), pl.Float64)}
    return pl.DataFrame(rows, schema=schema)


def _number(value: Any) -> float | None:
    """A number, or None: Snakemake writes NA or - for values that it could not measure in a short job."""
    return float(value) if isinstance(value, int | float) else None


def summarise(jobs: pl.DataFrame) -> dict[str, Any] | None:
    """Totals, one entry per rule (the most expensive first) and the slowest jobs; None without jobs."""
    if jobs.is_empty():
        return None
    slowest = pl.col("job").sort_by("seconds", descending=True, nulls_last=True).first()
    seconds, used = pl.col("seconds"), (pl.col("peak_mb").max(), pl.col("cpu_seconds").sum())
    times = {"total": seconds.sum(), "median": seconds.median(), "longest": seconds.max(), "slowest": slowest}
    rules = jobs.group_by("rule").agg(pl.len().alias("n"), *used, **times)
    most = max(float(rules["total"].max() or 0.0), 1e-9)  # type: ignore[arg-type]
    rules = rules.with_columns(share=pl.col("total") / most)
    return {
        "n": len(jobs),
        "seconds": float(jobs["seconds"].sum()),
        "cpu_seconds": float(jobs["cpu_seconds"].sum()),
        "peak_mb": jobs["peak_mb"].max(),
        "rules": rules.sort(["total", "rule"], descending=[True, False]).to_dicts(),
        "slowest": jobs.sort(["seconds", "job"], descending=[True, False], nulls_last=True).head(SLOWEST).to_dicts(),
    }


def show_seconds(seconds: float | None) -> str:
    """Format a duration: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_megabytes(megabytes: float | None) -> str:
    """Format a size: `512 MB`, `2.3 GB`."""
    if megabytes is None:
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
