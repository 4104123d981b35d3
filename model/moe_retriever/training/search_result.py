"""Reading best.json, the result of a hyper-parameter search, for `train --options` and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from moe_retriever.config import OptionValue
from mrpipe.errors import DataError, Fault
from mrpipe.reading import read_json


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
    fix = "Pass a best.json written by `mrpipe search`."
    content = read_json(path, expected, fix)
    if wrong := [key for key in needed if not isinstance(content.get(key), _KINDS[key])]:
        found = f"missing or invalid {' and '.join(wrong)}"
        raise DataError(Fault(file=str(path), expected=expected, found=found, fix=fix))
    return cast(SearchResult, content)
