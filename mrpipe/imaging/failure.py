"""Failure of a single scan."""


class ScanFailedError(Exception):
    """A scan could not be processed to a map; the run continues without it.

    Attributes:
        reason: constant text per kind of failure, for counting; contains no subject, file name or value.
        detail: finding in this scan; may contain a path, so it is not written to stores or reports.
    """

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason} ({detail})" if detail else reason)
