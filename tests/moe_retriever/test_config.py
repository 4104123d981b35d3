"""Options: unknown names, invalid values and invalid combinations are rejected with an error message."""

from __future__ import annotations

import dataclasses

import pytest

from moe_retriever.config import Common, make_config
from moe_retriever.methods import get, names
from moe_retriever.methods.base import Method
from mrpipe.errors import UsageError
from mrpipe.options import parse_assignments


def make(method: str = "moe_retriever", preset: str = "paper", **overrides: object) -> object:
    return make_config(get(method), preset=preset, seed=0, overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 1.0}, r"no option 'learning_rate'"),
        ({"n_expert": 4}, r"'n_expert'. Did you mean .n_experts"),
        ({"epochs": "many"}, r"epochs='many' is not int"),
        ({"context": "sideways"}, r"context='sideways' must be one of self, cross, query"),
        ({"hidden": 130}, r"hidden=130 must be a multiple of heads=4"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"tokens": 0}, "common: option tokens=0 must be at least 1"),
        ({"top_k": 13}, r"top_k=13 exceeds n_experts \+ n_shared = 12"),
        ({"n_intra": "some"}, r"n_intra='some' must be observed, all or a positive number"),
        ({"n_intra": 0}, r"n_intra='0' must be"),
        ({"intra": False, "inter": False}, r"cannot both be False"),
        ({"fusion_experts": 2}, r"fusion_top_k=4 exceeds fusion_experts=2"),
    ],
)
def test_invalid_options_are_rejected(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**overrides)


def test_unknown_methods_and_presets_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"no method 'nonesuch'. Known names: .*moe_retriever"):
        get("nonesuch")
    with pytest.raises(UsageError, match="no preset 'fast'; it has paper, code-intended, released-code"):
        make(preset="fast")


def test_overrides_take_precedence_over_the_preset() -> None:
    plain, changed = make(preset="released-code"), make(preset="released-code", lr=0.5)
    assert (plain.common.lr, plain.own.integration) == (1e-4, "raw_mean")  # type: ignore[attr-defined]
    assert (changed.common.lr, changed.own.integration) == (0.5, "raw_mean")  # type: ignore[attr-defined]


def test_assignments_are_converted_to_the_type_of_the_option() -> None:
    given = parse_assignments(["tokens=8", "lr=1e-3", "n_intra=4", "image_freeze=True", "image_weights=a=b"])
    config = make(**given)
    assert (config.common.tokens, config.common.lr, config.own.n_intra) == (8, 1e-3, "4")
    assert (config.common.image_freeze, config.common.image_weights) == (True, "a=b")
    with pytest.raises(UsageError, match="key=value"):
        parse_assignments(["lr"])


@pytest.mark.parametrize("name", names())
def test_every_method_fulfils_the_contract(name: str) -> None:
    """Name equal to the module, one-line summary, documented options with unique names, and valid presets."""
    method = get(name)
    assert issubclass(method, Method)
    assert method.name == name
    assert method.summary
    own = {f.name for f in dataclasses.fields(method.Options)}
    assert not own & {f.name for f in dataclasses.fields(Common)}
    for f in (*dataclasses.fields(method.Options), *dataclasses.fields(Common)):
        assert f.metadata["help"], f.name
    for preset in method.presets:
        make(name, preset)
