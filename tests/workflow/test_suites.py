"""Suites: validation of the file, the cells it expands to, and cells shared between suites."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_retriever.catalogue import gradient_steps, own_names
from mrpipe.cli.main import main
from mrpipe.fetch.download import FOLDER, catalogue
from workflow.planning.arguments import benchmark_arguments, search_arguments, train_arguments
from workflow.planning.plan import ConfigError, make_plan, schema_faults
from workflow.planning.runs import mask_name
from workflow.planning.suite_cells import description
from workflow.planning.suites import Suites

FIGURES = ("figure3", "figure4", "figure5", "figure6")
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7")
OWN: dict[str, Any] = {
    "suites": {
        "mine": {
            "title": "A question of my own",
            "methods": ["moe_retriever", "majority"],
            "blocks": [{"dataset": "mosi", "views": [["audio", "text"]], "missingness": {"p": [0.3, 0.5]}}],
        }
    }
}


@pytest.fixture(scope="module", autouse=True)
def fetched(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Path]:
    """A working directory that has the data of `mrpipe fetch` by name, without content."""
    folder = tmp_path_factory.mktemp("fetched")
    for name, data in catalogue().items():
        views = [f"mfeat-{view}.csv" for view in ("fou", "fac", "kar", "pix", "zer", "mor")]
        for file in (*data.files, *views, "PhysionetChallenge2012-set-a.csv"):
            (folder / FOLDER / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / FOLDER / name / file).touch()
        declaration = project / f"workflow/config/examples/tables/{name}.yaml"
        if declaration.is_file():
            shutil.copyfile(declaration, folder / FOLDER / name / "tables.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def config_of(**datasets: dict[str, Any]) -> dict[str, Any]:
    entries = {name: {"options": {}, "simulation": {}} | entry for name, entry in datasets.items()}
    return {"datasets": entries, "experiments": {}, "suites": [], "size": "full"}


def suites_of(config: dict[str, Any], **changes: Any) -> Suites:
    config = config | changes
    return Suites(config, make_plan(config))


@pytest.fixture(scope="module")
def everything() -> dict[str, Suites]:
    """The suites of the project on simulated exports, in both sizes."""
    return {size: suites_of(config_of(), size=size) for size in ("smoke", "full")}


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Reads the suites with a user's file, modified by a function."""

    def read(change: Any = lambda said: None, **changes: Any) -> Suites:
        said = copy.deepcopy(OWN)
        change(said)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said))
        return suites_of(config_of(), suites=str(tmp_path / "mine.yaml"), **changes)

    return read


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_every_table_and_figure_of_the_paper_is_a_suite(everything: dict[str, Suites], size: str) -> None:
    suites = everything[size]
    assert {*TABLES, *FIGURES, "paper"} <= set(suites.names)
    assert {part.name for part in suites.parts("paper")} == {*TABLES, *FIGURES}


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_cells_are_unique_and_use_modalities_of_their_store(everything: dict[str, Suites], size: str) -> None:
    suites = everything[size]
    cells = [run for name in suites.names for run in suite_cells(suites, name)]
    assert len(cells) > 300
    by_folder: dict[str, Any] = {}
    for run in cells:
        # A cell that two suites request is the same cell.
        assert by_folder.setdefault(run.folder, run) == run
        stored = suites.store(run.store).modalities
        assert run.modalities
        assert set(run.modalities) <= set(stored)
        assert list(run.modalities) == [m for m in stored if m in run.modalities]
        assert (run.mask is None) == (run.missingness is None)
        if run.missingness is not None:
            assert (run.missingness.seed, run.missingness.modalities) == (run.seed, run.modalities)
    contents = {json.dumps(content(run), sort_keys=True) for run in by_folder.values()}
    assert len(contents) == len(by_folder)


def suite_cells(suites: Suites, name: str) -> list[Any]:
    return [run for c in suites.suite(name).columns for runs in c.cells.values() for run in runs]


def content(run: Any) -> dict[str, Any]:
    return {
        "store": run.store,
        "view": run.modalities,
        "mask": run.mask,
        "method": run.method,
        "preset": run.preset,
        "overrides": run.overrides,
        "seed": run.seed,
        "task": run.task,
        "scheme": run.scheme,
        "trials": run.trials,
    }


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_tables_share_cells(everything: dict[str, Suites], size: str) -> None:
    suites = everything[size]
    cells = {name: set(suites.suite(name).runs) for name in TABLES}
    mosi = {folder for folder in cells["table2"] if folder.startswith("mosi")}
    assert mosi == {folder for folder in cells["table4"] if "-p0.3/" in folder}
    assert cells["table5"] == cells["table6"] == {folder for folder in cells["table1"] if folder.startswith("mimic")}
    assert cells["table7"] & cells["table2"]


def test_full_method_of_table_3_is_the_cell_of_table_1(everything: dict[str, Suites]) -> None:
    """Including its search; every variant is searched as much as the full method."""
    for size, suites in everything.items():
        (ablations,) = suites.suite("table3").columns
        column = next(c for c in suites.suite("table1").columns if c.experiment == ablations.experiment)
        assert len(column.view) == 4
        full = ablations.cells["full (E_T=8, E_Sh=4, R=1)"]
        assert full == column.cells["MoE-Retriever"]
        assert {run.folder for run in full} == {run.folder for run in column.cells["MoE-Retriever"]}
        searched = {r.trials for runs in ablations.cells.values() for r in runs if r.method == "moe_retriever"}
        assert searched == {6 if size == "full" else 0}


def test_methods_of_a_column_share_masks_seeds_and_search_budget(everything: dict[str, Suites]) -> None:
    for name in ("table1", "table2", "table4", "table5", "table6"):
        for column in everything["full"].suite(name).columns:
            runs = [run for runs in column.cells.values() for run in runs]
            per_row = {row: [(r.seed, r.mask) for r in runs] for row, runs in column.cells.items()}
            assert len({json.dumps(v) for v in per_row.values()}) == 1
            assert [seed for seed, _ in per_row["MoE-Retriever"]] == [0, 1, 2]
            assert {r.trials for r in runs if r.method != "majority"} == {6}
            assert len({r.preset for r in runs if r.method != "moe_retriever"}) == 1
            # A row per method, and further ones for the released code and DyMo's network without recovery.
            assert len(column.cells) == len(own_names()) + 2


def test_methods_of_a_column_select_the_epoch_by_the_same_metric(everything: dict[str, Suites]) -> None:
    from moe_retriever.config import make_config
    from moe_retriever.methods import get

    for name in TABLES:
        for column in everything["full"].suite(name).columns:
            runs = [runs[0] for runs in column.cells.values()]
            configs = [make_config(get(r.method), preset=r.preset, seed=0, overrides=r.overrides) for r in runs]
            assert len({c.common.select_metric for c in configs}) == 1, column.experiment


def test_search_is_shared_by_the_seeds_of_a_cell_and_uses_the_first_mask(everything: dict[str, Suites]) -> None:
    suites = everything["full"]
    searched = [run for run in suites.runs.values() if run.trials]
    assert searched
    for run in searched:
        first = suites.first_seeds[run.experiment, run.label]
        assert first.seed == first.first_seed == 0
        assert (run.overrides, run.trials) == (first.overrides, first.trials)
    assert not any(run.trials for run in everything["smoke"].runs.values())


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_every_cell_has_valid_options(
    everything: dict[str, Suites], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = everything[size]
    asked = {
        f"{run.experiment}/{run.label}": {"method": run.method, "preset": run.preset, "overrides": run.overrides}
        for run in suites.runs.values()
    }
    assert main(["settings", json.dumps(asked)]) == 0, capsys.readouterr().err


def test_rows_of_table_3_are_the_ablations_of_the_paper(everything: dict[str, Suites]) -> None:
    suite = everything["full"].suite("table3")
    (column,) = suite.columns
    told_apart = {row: column.cells[row][0].overrides for row in column.cells if row != "majority class"}
    assert len(told_apart) == 13
    assert len({json.dumps(o, sort_keys=True) for o in told_apart.values()}) == 13
    common = told_apart["full (E_T=8, E_Sh=4, R=1)"]
    assert common == {"select_metric": "macro_f1"}
    assert told_apart["w/o intra-modal context"] == common | {"intra": False}
    assert told_apart["R=4 (one a target)"] == common | {"routers": "target"}


def test_reading_and_expanding_is_fast() -> None:
    config = config_of()
    plan = make_plan(config)
    started = time.perf_counter()
    suites = Suites(config, plan)
    read = time.perf_counter()
    assert len(suites.runs) > 900
    expanded = time.perf_counter()
    # Measured: 0.03 s, and 0.05 s including the import of the readers; the limits allow for a busy machine.
    assert read - started < 1
    assert expanded - read < 5


# Data sources


def test_configured_export_is_used_and_its_missing_modalities_are_marked(tmp_path: Path) -> None:
    config = config_of(mosi={"raw": str(tmp_path), "modalities": ["text", "audio"]})
    suites = suites_of(config)
    columns = {c.experiment: c for c in suites.suite("table2").columns}
    assert columns["mosi-text+audio-mcar-p0.3"].cells
    without = columns["mosi-text+audio+vision-mcar-p0.3"]
    assert (without.absent, without.cells) == (("vision",), {})
    assert columns["enrico-full-screenshot+wireframe-mcar-p0.3"].store == "enrico-full"


def test_modalities_of_a_sealed_store_come_from_its_manifest(tmp_path: Path) -> None:
    listed = [{"name": "text", "bit": 0}, {"name": "audio", "bit": 1}]
    (tmp_path / "manifest.json").write_text(json.dumps({"modalities": listed}))
    suites = suites_of(config_of(mosi={"store": str(tmp_path)}))
    cells = {run.experiment for run in suites.suite("table4").runs.values()}
    assert cells == {f"mosi-text+audio-mcar-p{p}" for p in ("0.1", "0.3", "0.5")}


def test_modalities_and_tasks_of_a_sealed_store_of_declared_tables_come_from_its_manifest(tmp_path: Path) -> None:
    listed = [{"name": name, "bit": bit} for bit, name in enumerate(("ward", "blood"))]
    (tmp_path / "manifest.json").write_text(json.dumps({"modalities": listed, "labels": [{"name": "died"}]}))
    block = {"dataset": "icu", "methods": "majority", "task": "died"}
    blocks = [block, block | {"views": [["blood"], ["blood", "ward"]]}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"suites": {"mine": {"title": "t", "blocks": blocks}}}))
    config = config_of(icu={"store": str(tmp_path), "dataset": "tables"})
    suite = suites_of(config, suites=str(tmp_path / "mine.yaml")).suite("mine")
    assert [(c.view, c.absent) for c in suite.columns] == [(("ward", "blood"), ()), (("blood",), ())]
    for change, message in (
        ({"views": [["vitals"]]}, "Known names: ward, blood"),
        ({"task": "outcome"}, "Known names: died"),
    ):
        said = {"suites": {"mine": {"title": "t", "blocks": [block | change]}}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said))
        with pytest.raises(ConfigError, match=message):
            suites_of(config, suites=str(tmp_path / "mine.yaml")).suite("mine")


def test_simulated_dataset_of_the_configuration_is_not_used() -> None:
    suites = suites_of(config_of(mosi={"raw": "simulated"}, other={"raw": "simulated", "dataset": "mosi"}))
    assert suites.suite("table4").stores == ["mosi-full"]


# User-defined suites


def test_user_defined_suite(own: Any) -> None:
    suites = own()
    runs = suites.suite("mine").runs
    assert len(runs) == 2 * 2 * 5
    assert {run.experiment for run in runs.values()} == {f"mosi-full-text+audio-mcar-p{p}" for p in (0.3, 0.5)}
    assert len({mask_name(run.missingness) for run in runs.values()}) == 2 * 5
    assert len(own(size="smoke").suite("mine").runs) == 2 * 2


def test_suite_can_use_any_dataset_of_the_configuration(tmp_path: Path) -> None:
    block = {"dataset": "try", "methods": "majority"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"suites": {"mine": {"title": "t", "blocks": [block]}}}))
    config = config_of(**{"try": {"raw": "simulated", "dataset": "mosi"}})
    suites = suites_of(config, suites=[str(tmp_path / "a.yaml")])
    (column,) = suites.suite("mine").columns
    assert (column.store, column.view) == ("try", ("text", "audio", "vision"))


def test_size_replaces_overrides_of_the_suite_but_not_of_a_row(own: Any) -> None:
    def change(said: dict[str, Any]) -> None:
        said["suites"]["mine"] |= {"overrides": {"epochs": 77, "clip": 1.0}}
        said["suites"]["mine"]["methods"] = [{"method": "moe_retriever", "overrides": {"hidden": 99}}]

    full, smoke = (own(change, size=size).suite("mine") for size in ("full", "smoke"))
    overrides = {s: next(iter(suite.runs.values())).overrides for s, suite in (("full", full), ("smoke", smoke))}
    assert {k: overrides["full"][k] for k in ("epochs", "clip", "hidden")} == {"epochs": 77, "clip": 1.0, "hidden": 99}
    assert overrides["smoke"]["epochs"] < 10
    assert (overrides["smoke"]["clip"], overrides["smoke"]["hidden"]) == (1.0, 99)


def test_transforms_name_the_folder_and_default_ones_do_not(own: Any) -> None:
    def change(said: dict[str, Any]) -> None:
        said["suites"]["mine"] |= {"transforms": {"scale": "minmax", "clip": 10}, "search": {"trials": 2}}
        said["suites"]["mine"]["blocks"] *= 3
        said["suites"]["mine"]["blocks"] = [
            block | {"missingness": {"p": 0.3}, "transforms": own_transforms}
            for block, own_transforms in zip(
                said["suites"]["mine"]["blocks"], ({}, {"svd_dim": 64}, {"scale": "standard"}), strict=True
            )
        ]

    suite = own(change).suite("mine")
    usual = "mosi-full-text+audio-mcar-p0.3"
    folders = {f"{usual}-scale_minmax": {"scale": "minmax"}, usual: {}}
    folders[f"{usual}-scale_minmax-svd_dim_64"] = {"scale": "minmax", "svd_dim": 64}
    assert {run.experiment: run.transforms for run in suite.runs.values()} == folders
    assert len({(run.label, run.mask) for run in suite.runs.values()}) == len(suite.runs) // 3
    columns = description(suite, "full", {"mosi-full": ("results/stores/mosi-full", None)})["columns"]
    assert {c["experiment"]: c.get("transforms") for c in columns} == {k: v or None for k, v in folders.items()}
    for run in suite.runs.values():
        pairs = [f"{k}={v}" for k, v in run.transforms.items()]
        for command in (train_arguments(run), search_arguments(run), benchmark_arguments(run, 3)):
            at = command.index("--transform") + 1 if pairs else 0
            assert command[at : at + len(pairs)] == pairs
            assert ("--transform" in command) == bool(pairs)


def block_of(said: dict[str, Any]) -> dict[str, Any]:
    block: dict[str, Any] = said["suites"]["mine"]["blocks"][0]
    return block


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["suites"]["mine"].update(tilte="x"), "suites.mine: unknown key 'tilte'. Did you mean 'title'?"),
        (lambda s: s.update(suite={}), "top level: unknown key 'suite'. Did you mean 'suites'?"),
        (lambda s: block_of(s).update(drop=0.3), "suites.mine.blocks.0: unknown key 'drop'"),
        (lambda s: block_of(s).update(missingness={"p": -1}), "-1 is less than the minimum of 0"),
        (lambda s: s["suites"]["mine"].pop("blocks"), "suites.mine: set either `blocks`, or `of`"),
        (lambda s: s["suites"]["mine"].update(of=["table1"]), "set either `blocks`, or `of`"),
        (lambda s: s["suites"].update(two={"title": "t", "of": ["tabel1"]}), "Did you mean 'table1'?"),
        (lambda s: s["suites"].update(two={"title": "t", "of": ["two"]}), "suites.two.of: the suite contains itself"),
        (lambda s: block_of(s).update(dataset="mosl"), "no dataset 'mosl'. Did you mean 'mosi'?"),
        (lambda s: s["suites"]["mine"].update(methods="mmforner"), "Did you mean 'mmformer'?"),
        (lambda s: s["suites"]["mine"].pop("methods"), "suites.mine.blocks.0: set `methods`"),
        (lambda s: s.update(groups={"a": ["b"], "b": ["a"]}), "the group 'a' contains itself"),
        (lambda s: s["suites"].update(table1=s["suites"]["mine"]), "suites.table1: this name is already defined"),
        (lambda s: s["suites"]["mine"].update(figure="embedding"), "`missing` (a modality) is required"),
        (lambda s: s["suites"]["mine"].update(transforms={"sclae": "none"}), "suites.mine.transforms: unknown option"),
        (lambda s: block_of(s).update(transforms={"clip": -1}), "suites.mine.blocks.0.transforms: option clip=-1.0"),
    ],
)
def test_invalid_file_is_reported_on_reading(own: Any, change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        own(change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: block_of(s).update(views=[["txet"]]), "no modality 'txet' in mosi. Did you mean 'text'?"),
        (lambda s: block_of(s).update(task="mood"), "no task 'mood' in mosi"),
        (lambda s: block_of(s).update(scheme="mine"), "no scheme 'mine' in store mosi-full"),
        (lambda s: block_of(s).update(missingness={"p": 0.3, "mechanism": "mcra"}), "unknown mechanism"),
        (
            lambda s: s["suites"]["mine"]["blocks"].append(
                block_of(s) | {"methods": [{"method": "majority", "preset": "x", "name": "majority"}]}
            ),
            "another block has a row 'majority' with other settings",
        ),
    ],
)
def test_invalid_suite_is_reported_on_expansion(own: Any, change: Any, message: str) -> None:
    suites = own(change)
    with pytest.raises(ConfigError, match=r"suites\.mine\.blocks\.\d") as caught:
        suites.suite("mine")
    assert message in str(caught.value)


def test_example_and_documented_suite_are_valid(project: Path, tmp_path: Path) -> None:
    pattern = re.compile(r"```yaml\n(suites:.*?)```", flags=re.DOTALL)
    text, protocols = pattern.findall((project / "docs/suites.md").read_text())
    (tmp_path / "documented.yaml").write_text(text)
    example = project / "workflow/config/examples/suites/mosi_retrieval.yaml"
    config = yaml.safe_load((project / "workflow/config/examples/mosi_suite.yaml").read_text())
    assert (project / config["suites"]).samefile(example)
    for path, columns in ((tmp_path / "documented.yaml", 4), (example, 2)):
        suite = suites_of(config_of(), suites=str(path)).suite("retrieval")
        assert (len(suite.rows), len(suite.columns)) == (4 if columns == 4 else 5, columns)
        assert {run.seed for run in suite.runs.values()} == set(range(5))
    (tmp_path / "protocols.yaml").write_text(protocols)
    suite = suites_of(config_of(), suites=str(tmp_path / "protocols.yaml")).suite("protocols")
    assert (len(suite.rows), len(suite.columns)) == (5, 1 + 4 + 3)
    assert len({run.folder for run in suite.runs.values()}) == 5 * len({run.seed for run in suite.runs.values()})


def test_open_compares_all_methods_on_all_fetched_data_with_five_seeds(tmp_path: Path, fetched: Path) -> None:
    suites = suites_of(config_of())
    suite = suites.suite("open")
    assert {run.method for run in suite.runs.values()} == METHODS
    levels = {c.store: [] for c in suite.columns}
    for column in suite.columns:
        levels[column.store].append(column.missingness and column.missingness.p)
        for runs in column.cells.values():
            assert [run.seed for run in runs] == [0, 1, 2, 3, 4]
            assert {(run.overrides["tokens"], run.overrides["hidden"], run.trials) for run in runs} == {(1, 64, 0)}
    assert levels == {
        "open_mfeat": [0.1, 0.3, 0.5],
        "open_enrico": [0.1, 0.3, 0.5],
        "open_physionet2012": [None],
        "open_mimic_demo": [None],
    }
    assert {f"open_{name}" for name, data in catalogue().items() if data.files} == set(levels)
    assert suites.store("open_mimic_demo").options == {"icd9": "off", "min_visits": 1}
    note = "mosi: omitted, because the configuration has no export of this name."
    assert list(suite.notes) == [note] == description(suite, "full", dict.fromkeys(levels, ("s", None)))["notes"]
    mosi = suites_of(config_of(mosi={"raw": str(fetched), "modalities": ["audio", "text"]})).suite("open")
    assert [c.missingness.p for c in mosi.columns if c.store == "mosi" and c.missingness] == [0.1, 0.3, 0.5]
    assert not mosi.notes


def test_open_without_data_names_the_command_and_does_not_affect_other_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    suites = suites_of(config_of())
    assert len(suites.runs) > 300
    everything = r"no data in data/open; download them: mrpipe fetch mfeat physionet2012 mimic_demo enrico$"
    with pytest.raises(ConfigError, match=everything):
        suites.suite("open")
    shutil.copytree(fetched / FOLDER / "mfeat", tmp_path / FOLDER / "mfeat")
    elsewhere = {"dataset": "enrico", "raw": str(fetched / FOLDER / "enrico")}
    with pytest.raises(ConfigError, match=r"mrpipe fetch physionet2012 mimic_demo$"):
        suites_of(config_of(open_enrico=elsewhere)).suite("open")


METHODS = {p.stem for p in (Path(__file__).parents[2] / "model/moe_retriever/methods").glob("[!_]*.py")} - {"base"}


def test_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("suites: [")
    files = [str(tmp_path / name) for name in ("broken.yaml", "absent.yaml")]
    with pytest.raises(ConfigError) as caught:
        suites_of(config_of(), suites=files)
    assert len(caught.value.faults) == 2
    assert all(name in str(caught.value) for name in files)


def test_description_fits_a_command_line_argument(everything: dict[str, Suites]) -> None:
    suites = everything["full"]
    for name in TABLES:
        suite = suites.suite(name)
        said = description(suite, "full", {store: (f"results/stores/{store}", None) for store in suite.stores})
        # Linux limits one argument to 128 KiB.
        assert len(json.dumps(said)) < 64 * 1024
        listed = {
            f"{c['experiment']}/{label}/seed{seed}"
            for c in said["columns"]
            for label, seeds in c["cells"].values()
            for seed in seeds
        }
        assert listed == set(suite.runs)


def test_column_names_are_unique(own: Any) -> None:
    from moe_retriever.suites.spec import parse_suite

    block = OWN["suites"]["mine"]["blocks"][0]
    hidden = [{"p": 0.3, "mechanism": "mnar_label"}, {"p": 0.3, "mechanism": "mnar_label", "strength": 1.0}, {"p": 0.3}]
    changes = [*({"missingness": m} for m in hidden), {"scheme": "standard"}, {"task": "polarity"}]
    changes += [{"transforms": {"clip": 5}}]
    suite = own(lambda said: said["suites"]["mine"].update(blocks=[block | change for change in changes])).suite("mine")
    asked = parse_suite(description(suite, "full", {"mosi-full": ("results/stores/mosi-full", None)}))
    names = [column.name for column in asked.columns]
    # The last three blocks take two rates each.
    assert len(set(names)) == len(names) == 3 + 3 * 2
    assert names[-1] == "A+T, p = 0.5, clip = 5.0"


def test_schema_admits_no_undescribed_key(project: Path) -> None:
    schema = yaml.safe_load((project / "workflow/schemas/suites.schema.yaml").read_text())
    open_objects = [
        place
        for place, node in nodes(schema)
        if node.get("type") == "object" and "properties" in node and node.get("additionalProperties") is not False
    ]
    assert open_objects == []
    assert schema_faults(yaml.safe_load((project / "workflow/config/suites.yaml").read_text()), schema) == []


def nodes(node: Any, place: str = "") -> Any:
    if isinstance(node, dict):
        yield place, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    yield from itertools.chain.from_iterable(nodes(child, f"{place}.{key}") for key, child in children)


# Protocols


def protocols(said: dict[str, Any]) -> None:
    block_of(said).update(missingness=None, test=["same", "patterns", {"p": [0.3, {"audio": 0.5}]}, {"store": "mosi"}])


def test_protocols_are_columns_and_share_trainings(own: Any) -> None:
    suite = own(protocols).suite("mine")
    names = [c.test and (c.test.name, c.test.pattern) for c in suite.columns]
    assert names == [
        None,
        *(("patterns", p) for p in ("text", "audio", "text+audio")),
        *((f"mcar-p{p}", "") for p in ("0.3", "audio_0.5")),
        ("store_mosi-full", ""),
    ]
    runs = suite.runs.values()
    assert len({run.folder for run in runs}) == 2 * 5
    assert len({run.tested for run in runs}) == 2 * 5 * 5
    assert all(run.mask is None for run in runs)
    assert {run.experiment for run in runs} == {"mosi-full-text+audio"}
    for run in runs:
        m = run.test_missingness
        assert m is None or (m.seed, m.modalities) == (run.seed, run.modalities)
    read = own(protocols)
    assert {read.runs[run.folder].test for run in runs} == {None}
    assert {name.split("-text")[0] for _, name in read.masks if "audio_0.5" in name} == {"mcar-paudio_0.5"}


def test_description_of_protocols_is_read(own: Any) -> None:
    from moe_retriever.suites.spec import parse_suite

    suite = own(protocols).suite("mine")
    said = parse_suite(json.loads(json.dumps(description(suite, "full", {"mosi-full": ("mosi-full", None)}))))
    assert [c.name for c in said.columns] == [
        "A+T",
        "A+T, tested: only T",
        "A+T, tested: only A",
        "A+T, tested: only A+T",
        "A+T, tested: p = 0.3",
        "A+T, tested: p = audio 0.5",
        "A+T, tested: store mosi-full",
    ]
    listed = {folder for c in said.columns for _, _, folder in c.runs()}
    assert listed == set(suite.runs)


def test_hiding_multiplies_the_rows_of_methods_with_gradient_steps(own: Any) -> None:
    from moe_retriever.methods import get

    for name in own_names():
        assert gradient_steps(name) == get(name).gradient, name

    def change(said: dict[str, Any]) -> None:
        said["suites"]["mine"]["methods"] = ["mmformer", "majority", {"method": "muse", "overrides": {"hidden": 8}}]
        said["suites"]["mine"]["hiding"] = [0, 0.3]

    suite = own(change).suite("mine")
    rows = {row.name: row.overrides for row in suite.rows.values()}
    assert rows == {
        "mmformer, hiding 0": {"drop_modalities": 0.0},
        "mmformer, hiding 0.3": {"drop_modalities": 0.3},
        "majority": {},
        "muse, hiding 0": {"hidden": 8, "drop_modalities": 0.0},
        "muse, hiding 0.3": {"hidden": 8, "drop_modalities": 0.3},
    }
    assert len(suite.runs) == 5 * 2 * 5


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"mechanism": "block"}, "'p' is a dependency of 'mechanism'"),
        ({"pp": 0.3}, "unknown key 'pp'. Did you mean 'p'?"),
        ("all", "'all' does not match"),
    ],
)
def test_invalid_protocol_is_reported_on_reading(own: Any, test: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        own(lambda said: block_of(said).update(test=test))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"store": "mosl"}, "test.store: no dataset 'mosl'. Did you mean 'mosi'?"),
        ({"store": "adni"}, "test.store: 'adni' is of adni, not of mosi"),
        ({"p": {"txet": 0.3}}, "no modality 'txet' in mosi"),
    ],
)
def test_invalid_protocol_is_reported_on_expansion(own: Any, test: Any, message: str) -> None:
    suites = own(lambda said: block_of(said).update(test=test))
    with pytest.raises(ConfigError) as caught:
        suites.suite("mine")
    assert message in str(caught.value)


def test_figures_have_no_protocols(own: Any) -> None:
    with pytest.raises(ConfigError, match="'test' has no effect on a figure"):
        own(lambda said: said["suites"]["mine"].update(figure="cost", test="patterns"))
