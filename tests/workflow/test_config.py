"""Validation of the configuration: all errors are reported together, with the key; the examples are valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from workflow.planning.plan import ConfigError, make_plan, schema_faults


@pytest.fixture(scope="module")
def schema(project: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((project / "workflow/schemas/config.schema.yaml").read_text())
    return loaded


def objects(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All subschemas with their location: objects and properties."""
    yield place, schema
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from objects(inner, f"{place}/{name}")
    for key in ("additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            yield from objects(schema[key], f"{place}/{key}")


def test_a_configuration_may_consist_of_suites_only(schema: dict[str, Any]) -> None:
    assert not schema_faults({"suites": "mine.yaml"}, schema)


def test_schema_is_valid_and_admits_no_unknown_key(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    for place, node in objects(schema):
        if "properties" in node:
            assert node["additionalProperties"] is False, place
            for name, inner in node["properties"].items():
                assert inner.get("description"), f"{place}/{name}"


def plan_of(config: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Plan of a configuration, with the defaults filled in as Snakemake does."""
    from snakemake.utils import validate

    faults = schema_faults(config, schema)
    if faults:
        raise ConfigError(faults)
    validate(config, str(Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"))
    return make_plan(config)


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ([], "experimnts", {}, "top level: unknown key 'experimnts'. Did you mean 'experiments'?"),
        (["datasets", "mosi"], "rwa", 1, "datasets.mosi: unknown key 'rwa'. Did you mean 'raw'?"),
        (["experiments", "mosi"], "zzz", 1, "experiments.mosi: unknown key 'zzz'. Known names: dataset, methods"),
        (["experiments", "mosi", "missingness"], "q", 1, "experiments.mosi.missingness: unknown key 'q'"),
        (["experiments", "mosi"], "seeds", [0, "one"], "experiments.mosi.seeds.1: 'one' is not of type 'integer'"),
        (["datasets", "mosi"], "options", {"wrods": 1}, "datasets.mosi.options: unknown option 'wrods'"),
        (["datasets", "mosi"], "options", {"max_steps": "a"}, "datasets.mosi.options: option max_steps='a'"),
        (["datasets", "mosi"], "simulation", {"n": 1}, "datasets.mosi.simulation: unknown option 'n'"),
        (["datasets", "mosi"], "dataset", "mosy", "datasets.mosi.dataset: no dataset 'mosy'; known: "),
        (["datasets", "mosi"], "raw", "/nowhere", "datasets.mosi.raw: no folder '/nowhere'"),
        (["datasets", "mosi"], "store", "/nowhere", "datasets.mosi: set `raw`"),
        (["datasets", "mosi"], "modalities", ["smell"], "datasets.mosi.modalities: mosi has no 'smell'"),
        (["datasets", "mosi"], "schemes", {"mine": {}}, "datasets.mosi.schemes: mosi has no scheme 'mine'"),
        (["experiments", "mosi"], "dataset", "adni", "experiments.mosi.dataset: no entry 'adni' in datasets"),
        (["experiments", "mosi"], "modalities", ["smell"], "no modality 'smell' in store mosi"),
        (["experiments", "mosi"], "scheme", "mine", "experiments.mosi.scheme: no scheme 'mine' in store mosi"),
        (["experiments", "mosi"], "methods", ["magic"], "experiments.mosi.methods: no method 'magic'. Known names: "),
        (["experiments", "mosi"], "transforms", {"clipp": 1}, "experiments.mosi.transforms: unknown option 'clipp'"),
        (["experiments", "mosi"], "transforms", {"clip": -1}, "experiments.mosi.transforms: option clip=-1.0 must be"),
        (["experiments", "mosi"], "transforms", {"scale": 1}, "experiments.mosi.transforms: option scale=1 must"),
        (["experiments", "mosi"], "task", "age", "experiments.mosi.task: no task 'age' in mosi"),
        (["experiments", "mosi", "missingness"], "mechanism", "magic", "experiments.mosi.missingness: unknown mech"),
        (["experiments", "mosi", "missingness"], "p", 1.5, "experiments.mosi.missingness: p must be in [0, 1)"),
    ],
)
def test_error_names_its_key(
    tiny: dict[str, Any], schema: dict[str, Any], place: list[str], key: str, value: Any, message: str
) -> None:
    node = tiny
    for step in place:
        node = node[step]
    node[key] = value
    with pytest.raises(ConfigError) as caught:
        plan_of(tiny, schema)
    assert message in str(caught.value)


def test_all_errors_are_reported_together(tiny: dict[str, Any], schema: dict[str, Any]) -> None:
    tiny["datasets"]["mosi"]["options"] = {"wrods": 1}
    tiny["datasets"]["enrico"]["simulation"] = {"n": 1}
    tiny["experiments"]["mosi"]["missingness"]["p"] = 2
    tiny["experiments"]["mosi"]["transforms"] = {"impute": "mode"}
    with pytest.raises(ConfigError) as caught:
        plan_of(tiny, schema)
    assert len(caught.value.faults) == 4


def test_snakemake_stops_before_any_job_and_names_the_key(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["datasets"]["mosi"]["optoins"] = {}
    outcome = snakemake(folder=tmp_path, config=tiny)
    assert outcome.code != 0
    assert "datasets.mosi: unknown key 'optoins'. Did you mean 'options'?" in outcome.text
    assert not (tmp_path / "results").exists()


def test_default_configuration_uses_simulated_exports(project: Path, schema: dict[str, Any]) -> None:
    config = yaml.safe_load((project / "workflow/config/config.yaml").read_text())
    assert {entry["raw"] for entry in config["datasets"].values()} == {"simulated"}
    plan = plan_of(config, schema)
    assert set(plan.stores) == {"adni", "mosi", "enrico"}
    assert {run.store for run in plan.runs.values()} == {"adni", "mosi", "enrico"}
    assert plan.stores["adni"].modalities == ("image", "genomic", "clinical", "biospecimen")
    # A few raw scans go through the complete image chain; the others are simulated as maps.
    assert 0 < plan.stores["adni"].simulation["image_raw"] < 20


def test_examples_are_valid_under_the_schema(project: Path, schema: dict[str, Any]) -> None:
    examples = sorted((project / "workflow/config/examples").glob("*.yaml"))
    assert examples
    for path in examples:
        config = yaml.safe_load(path.read_text())
        assert schema_faults(config, schema) == [], path
        # The only errors are the paths, which the user has to fill in.
        with pytest.raises(ConfigError) as caught:
            plan_of(config, schema)
        assert [f for f in caught.value.faults if not re.match(r"[\w.]+: no (folder|sealed store)", f)] == [], path


def test_method_can_have_its_own_settings(tiny: dict[str, Any], schema: dict[str, Any]) -> None:
    tiny["experiments"]["mosi"] |= {
        "methods": {"majority": {}, "moe_retriever": {"preset": "other", "overrides": {"epochs": 3}}},
        "overrides": {"epochs": 1, "lr": 0.1},
    }
    runs = plan_of(tiny, schema).runs
    assert (runs["mosi/majority/seed0"].preset, runs["mosi/majority/seed0"].overrides) == (
        "paper",
        {"epochs": 1, "lr": 0.1},
    )
    own = runs["mosi/moe_retriever/seed0"]
    assert (own.preset, own.overrides) == ("other", {"epochs": 3, "lr": 0.1})


def test_runs_with_the_same_missingness_share_a_mask_file(tiny: dict[str, Any], schema: dict[str, Any]) -> None:
    tiny["experiments"]["mosi"] |= {"methods": ["majority", "logistic"], "seeds": [0, 1]}
    tiny["experiments"]["again"] = {"dataset": "mosi", "methods": ["moe_retriever"], "missingness": {"p": 0.3}}
    tiny["experiments"]["view"] = {"dataset": "mosi", "modalities": ["text", "audio"], "missingness": {"p": 0.3}}
    plan = plan_of(tiny, schema)
    masks = {folder: run.mask for folder, run in plan.runs.items()}
    assert masks["mosi/majority/seed0"] == masks["mosi/logistic/seed0"] == masks["again/moe_retriever/seed0"]
    assert len({masks["mosi/majority/seed0"], masks["mosi/majority/seed1"], masks["view/moe_retriever/seed0"]}) == 3
    assert len(plan.masks) == 4


def test_experiments_on_a_sealed_store_are_checked_against_its_manifest(
    tiny: dict[str, Any], schema: dict[str, Any], tmp_path: Path
) -> None:
    listed = [{"name": "audio", "bit": 1}, {"name": "text", "bit": 0}]
    (tmp_path / "manifest.json").write_text(json.dumps({"modalities": listed, "labels": [{"name": "mood"}]}))
    tiny["datasets"]["mosi"] = {"store": str(tmp_path)}
    tiny["experiments"]["mosi"] |= {"modalities": ["text", "audio"], "task": "mood"}
    assert plan_of(tiny, schema).stores["mosi"].modalities == ("text", "audio")
    tiny["datasets"]["mosi"]["modalities"] = ["text"]
    with pytest.raises(ConfigError, match=r"datasets\.mosi\.modalities: has no effect on a sealed store"):
        plan_of(tiny, schema)
    del tiny["datasets"]["mosi"]["modalities"]
    tiny["experiments"]["mosi"] |= {"modalities": ["vision"], "task": "sentiment"}
    with pytest.raises(ConfigError) as caught:
        plan_of(tiny, schema)
    assert "no modality 'vision' in store mosi. Known names: text, audio." in str(caught.value)
    assert "no task 'sentiment' in mosi. Known names: mood." in str(caught.value)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(ConfigError, match=r"datasets\.mosi\.store: .*manifest\.json is not a manifest"):
        plan_of(tiny, schema)
