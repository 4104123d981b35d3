"""Reading best.json, the result of a hyper-parameter search, for `train --options` and the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from moe_retriever.config import OptionValue
from mrpipe.errors import DataError, Fault


class SearchData(TypedDict):
    """Data of a search, as best.json records them."""

    dataset: str
    store_id: str
    origin: str
    task: str
    scheme: str
    mask: dict[str, object] | None
    mask_sha256: str
    modalities: list[str]
    transforms: NotRequired[dict[str, object]]


class SearchResult(SearchData):
    """The content of best.json."""

    method: str
    preset: str
    overrides: dict[str, OptionValue]
    score: float | None
    metric: str
    trial: int
    n_trials: int
    n_failed: int
    space: dict[str, list[OptionValue]]
    seed: int


_TEXTS = ("method", "preset", "store_id", "metric")
_KINDS: dict[str, type] = {**dict.fromkeys(_TEXTS, str), "overrides": dict, "n_trials": int, "space": dict}


def read_best(path: Path, needed: Sequence[str] = ("method", "preset", "overrides")) -> SearchResult:
    """Read a best.json that has at least the `needed` keys, with values of the right types.

    Raises:
        DataError: the file is not such a best.json.
    """
    expected = f"a JSON object with {', '.join(needed[:-1])} and {needed[-1]}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if isinstance(content, dict):
            wrong = [key for key in needed if not isinstance(content.get(key), _KINDS[key])]
            if not wrong:
                return cast(SearchResult, content)
            found = f"missing or invalid {' and '.join(wrong)}"
        else:
            found = f"a {type(content).__name__}"
    fix = "Pass a best.json written by `mrpipe search`."
    raise DataError(Fault(file=str(path), expected=expected, found=found, fix=fix))
