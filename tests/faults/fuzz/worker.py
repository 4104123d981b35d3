"""Entry point of a worker process of the fuzzer."""

from __future__ import annotations

import json
import sys

from tests.faults.fuzz.runner import work

if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
