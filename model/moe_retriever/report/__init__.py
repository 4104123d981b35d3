"""The report of a run: one self-contained HTML page (no network), the scores as CSV and the pictures as SVG beside it.

`page` puts it together; each other module makes one section from files alone: stores, runs, suites, benchmarks.
"""

from moe_retriever.report.page import Inputs, add_arguments, run, write_report

__all__ = ["Inputs", "add_arguments", "run", "write_report"]
