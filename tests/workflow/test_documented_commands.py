"""Every documented command line is run, or dry-run, word for word; the tutorials have a test of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_retriever.catalogue import names as method_names
from mrpipe.cli.main import command_names, command_parser, find_command, main
from mrpipe.datasets import dataset_names, get_dataset
from mrpipe.options import parse_assignments, parse_options
from mrpipe.stages.simulate import simulate
from tests.workflow.forks import SnakemakeForks

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "workflow/profiles/README.md"]
PAGES += [p for p in sorted((PROJECT / "docs").rglob("*.md")) if p.parent.name != "tutorials"]
PAGES += sorted((PROJECT / "benchmarks").glob("*.md"))
CONFIGURATIONS = sorted((PROJECT / "workflow/config").rglob("*.yaml"))
# Names that the pages on plugins give to what a reader of them writes.
TAUGHT = {"sleep", "gated_mean", "gated"}


def commands() -> Iterator[str]:
    """Commands of fenced blocks and of the headers of configurations, without comments, in order."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:bash|console|sh)[^\n]*\n(.*?)```", text, re.DOTALL):
            yield from block.replace("\\\n", " ").splitlines()
    for file in CONFIGURATIONS:
        yield from re.findall(r"^#\s+((?:mrpipe|snakemake) \S.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)


def documented(*programs: str) -> list[str]:
    """Different documented command lines of some programs."""
    lines = [re.sub(r"\s+[#>]\s.*", "", line).strip() for line in commands()]  # without comments and redirection
    lines = [line.removeprefix("$ ").replace("python -P -m mrpipe", "mrpipe") for line in lines]
    return list(dict.fromkeys(line for line in lines if line.split(" ")[0] in programs))


RUNS = [c for c in documented("mrpipe", "snakemake") if c.startswith(("mrpipe run", "snakemake"))]
OTHERS = [c for c in documented("mrpipe") if not c.startswith("mrpipe run")]


def test_the_pages_hold_commands() -> None:
    assert len(RUNS) > 15
    assert len(OTHERS) > 25


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, real_data_dir: Path) -> Path:
    """A folder like a clone, with the documented configurations pointing at small exports."""
    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(PROJECT / "workflow", folder / "workflow")
    exports = {name: folder / "exports" / name for name in ("adni", "enrico", "mimic", "mosi")}
    for name, place in exports.items():
        simulate(get_dataset(name), place, get_dataset(name).tiny)
    for name in ("uci_mfeat", "physionet2012"):
        exports[name] = real_data_dir / "generic" / name
    fetched = {"mfeat": exports["uci_mfeat"], "physionet2012": exports["physionet2012"]}
    for name, place in {**fetched, "mimic_demo": real_data_dir / "mimic-iv-demo", "enrico": exports["enrico"]}.items():
        shutil.copytree(place, folder / "data/open" / name)
        (folder / "data/open" / name).chmod(0o755)
    for name in fetched:
        shutil.copyfile(
            PROJECT / f"workflow/config/examples/tables/{name}.yaml", folder / f"data/open/{name}/tables.yaml"
        )
    for file in (folder / "workflow/config/examples").glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        for entry in content.get("datasets", {}).values():
            kind = Path(str(entry.get("raw"))).name
            if "store" in entry:
                (folder / "sealed").mkdir(exist_ok=True)
                (folder / "sealed/manifest.json").write_text("{}")
                entry["store"] = str(folder / "sealed")
            elif str(entry["raw"]) != "simulated":
                nearest = next(p for n, p in exports.items() if n in kind or kind in n)
                entry["raw"] = str(nearest)
        file.write_text(yaml.safe_dump(content))
    mine = yaml.safe_load((PROJECT / "workflow/config/examples/mosi_suite.yaml").read_text())
    mine["datasets"] = {"mosi": {"raw": "simulated"}}
    blocks = re.findall(r"```yaml\n(.*?)```", (PROJECT / "docs/suites.md").read_text(), flags=re.DOTALL)
    (folder / "protocols.yaml").write_text(next(block for block in blocks if "test:" in block))
    example = PROJECT / "workflow/config/examples/suites/mosi_retrieval.yaml"
    mine["suites"] = [str(example), str(folder / "protocols.yaml")]
    (folder / "my.yaml").write_text(yaml.safe_dump(mine))
    shutil.copytree(PROJECT / "workflow/profiles/slurm", folder / "slurm")
    return folder


def plain(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """Arguments of the call of Snakemake that a command line is, as a dry run, and its environment."""
    program, *rest = shlex.split(command.replace("~", os.environ["HOME"]))
    if not {"-n", "--report", "--rulegraph", "--unlock", "--lint"} & set(rest):
        at = rest.index("--") if program == "mrpipe" and "--" in rest else len(rest)
        rest.insert(at, "-n")
    if program == "snakemake":
        return [*rest, "--snakefile", str(PROJECT / "Snakefile")], dict(os.environ)
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, line, env: calls.append((line, env)))
    assert main(rest) == 0
    (line, env) = calls[0]
    assert line[:4] == [sys.executable, "-P", "-m", "snakemake"]
    return line[4:], env


@pytest.mark.parametrize("command", RUNS)
def test_commands_of_the_workflow_are_planned(
    command: str, home: Path, forks: Callable[[Path], SnakemakeForks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments, env = plain(command, monkeypatch)
    code, text = forks(PROJECT).call(arguments, folder=home, env=env, seconds=300)
    assert code == 0, text[-3000:]


def check_options(parsed: Any, name: str) -> None:
    """Options of `--set` exist in the dataset's or the method's options."""
    from moe_retriever.config import make_config
    from moe_retriever.methods import get

    values = parse_assignments(getattr(parsed, "set", None))
    if getattr(parsed, "dataset", None):
        dataset = get_dataset(parsed.dataset)
        parse_options(dataset.simulation if name == "simulate" else dataset.options, values, context=name)
    elif hasattr(parsed, "set"):
        methods = parsed.method if isinstance(parsed.method, list) else [parsed.method or "moe_retriever"]
        for method in methods:
            make_config(get(method), preset=parsed.preset or "paper", seed=0, overrides=values)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_are_understood(command: str) -> None:
    _, name, *rest = shlex.split(command)
    if name.startswith("-"):
        assert name in ("--version", "--help")
        return
    if name not in command_names():
        pytest.fail(f"no command {name}")
    found = find_command(name)
    assert found is not None
    if rest == ["--help"]:
        return
    parsed = command_parser(name, found).parse_args(rest)
    given = {
        getattr(parsed, "dataset", None),
        *([parsed.method] if isinstance(getattr(parsed, "method", 0), str) else []),
    }
    unknown = given - {None, *dataset_names(), *method_names()}
    assert unknown <= TAUGHT
    if not unknown:
        check_options(parsed, name)


@pytest.mark.parametrize("command", documented("make"))
def test_make_targets_exist(command: str) -> None:
    _, *rest = shlex.split(command.split("&&")[0])
    done = subprocess.run(["make", "-n", *rest], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", documented("python"))
def test_modules_exist_and_have_the_flags(command: str) -> None:
    words = shlex.split(command)
    assert words[1] == "-m"
    done = subprocess.run(
        [sys.executable, "-m", words[2], "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for flag in (w for w in words[3:] if w.startswith("--")):
        assert flag in done.stdout


def test_no_target_follows_configfile() -> None:
    """Snakemake would take the target for a second configuration file."""
    for command in RUNS:
        assert not re.search(r"--configfile \S+\.ya?ml [^-]\S*(?<!yaml)(?= |$)", command), command
