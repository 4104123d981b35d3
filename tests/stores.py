"""Helpers for tests of stores: hashes of their tables, and edits of their manifests by someone who knows the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpipe.store.manifest import content_id, read_manifest, with_checksum


def tables(store: Any) -> dict[str, str]:
    """Path → SHA-256 of the tables of a store or a folder: equal for equal values, whatever their export."""
    return {f["file"]: f["sha256"] for f in read_manifest(Path(getattr(store, "path", store))).files}


def manifest_of(store: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    return values


def reseal(store: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of the manifest, and recompute id and checksums as an attacker would."""
    values = manifest_of(store) | changes
    values["store_id"] = content_id(values)
    (store / "manifest.json").write_text(with_checksum(values), encoding="utf-8")
    provenance = json.loads((store / "provenance.json").read_text(encoding="utf-8"))
    text = with_checksum(provenance | {"store_id": values["store_id"]})
    (store / "provenance.json").write_text(text, encoding="utf-8")
