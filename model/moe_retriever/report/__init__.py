"""The report: a self-contained HTML page that needs no network, with the scores as CSV and the figures as SVG.

`page` assembles it from sections that the other modules build from the files of stores, runs, suites and benchmarks.
"""

from moe_retriever.report.page import Inputs, add_arguments, run, write_report

__all__ = ["Inputs", "add_arguments", "run", "write_report"]
