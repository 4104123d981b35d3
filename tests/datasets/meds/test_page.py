"""The declarations on the page docs/meds.md are valid, and it names every key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mrpipe.datasets.meds.config import FORMS, LABEL_COLUMNS, MedsLabel, MedsModality, MedsSamples, parse_meds


def test_the_declarations_on_the_page_are_valid_and_every_key_is_described(project: Path) -> None:
    text = (project / "docs" / "meds.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [len(parse_meds(block, "meds.yaml").modalities) for block in blocks] == [4, 1, 1]
    keys = {f.name for cls in (MedsSamples, MedsLabel, MedsModality) for f in dataclasses.fields(cls)}
    for key in (keys - {"task", "name", "codes"}) | {*FORMS, *LABEL_COLUMNS, "classes"}:
        assert re.search(rf"`{key}\b", text), key
