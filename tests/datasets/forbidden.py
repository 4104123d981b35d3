"""A file without read permission, also for root."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let every attempt of Python code to open a file fail."""
    allowed = io.open

    def opened(file: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(file, int) and Path(file) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return allowed(file, *arguments, **named)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
