"""Why one scan gives no map."""

from __future__ import annotations


class ScanFailedError(Exception):
    """One scan gives no map; the run goes on without it.

    Attributes:
        reason: one text for each kind of failure, so that failures can be counted; never a subject, file or value.
        detail: what was found in this scan; may hold a path, so it stays out of stores and reports.
    """

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason} ({detail})" if detail else reason)
