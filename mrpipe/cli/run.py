"""`mrpipe run`: the workflow, from a checkout or from an installed package, in any folder."""

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mrpipe.cli.command import Command
from mrpipe.errors import UsageError

PACKAGE = Path(__file__).resolve().parents[1]
_LOG = logging.getLogger(__name__)
PROFILES = ("local", "slurm", "kubernetes")


def project_folder() -> Path:
    """Folder of the Snakefile and of workflow/: the checkout, or its copy inside the installed package."""
    checkout = PACKAGE.parent
    whole = (checkout / "Snakefile").is_file() and (checkout / "workflow").is_dir()
    return checkout if whole else PACKAGE / "_workflow"


def _add_arguments(parser: ArgumentParser) -> None:
    default = "default: stores, runs and report of the configuration"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=default)
    parser.add_argument("--config", nargs="+", type=Path, metavar="FILE", help="configuration (default: the demo)")
    parser.add_argument("--cores", metavar="N", help="number of cores, or all (default: all, or as the profile sets)")
    parser.add_argument("--profile", metavar="NAME", help=f"{', '.join(PROFILES)}, or the folder of your own profile")
    parser.add_argument("-n", "--dry-run", action="store_true", help="list the jobs and the reasons to run them")


def command_line(args: Namespace) -> list[str]:
    """The call of Snakemake.

    Raises:
        UsageError: a configuration or a profile that does not exist.
    """
    project = project_folder()
    # -P: the user's folder may hold a module with the name of one of ours.
    command = [sys.executable, "-P", "-m", "snakemake", *args.targets, "--snakefile", str(project / "Snakefile")]
    for file in args.config or ():
        if not file.is_file():
            raise UsageError(f"--config {file}: no such file")
    if args.config:
        command += ["--configfile", *map(str, args.config)]
    if args.profile:
        named = project / "workflow" / "profiles" / args.profile
        if not named.is_dir() and not Path(args.profile).is_dir():
            raise UsageError(f"--profile {args.profile}: no such folder; known profiles: {', '.join(PROFILES)}")
        command += ["--profile", str(named if named.is_dir() else args.profile)]
    if args.cores or not args.profile:
        command += ["--cores", args.cores or "all"]
    return [*command, *["--dry-run"] * args.dry_run, *args.rest]


def _run(args: Namespace) -> None:
    sys.stdout.flush()
    _LOG.info("planning the steps …")
    # Snakemake takes over this process, and with it signals and exit code.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    if not (args.verbose or args.dry_run or {"--verbose", "--dry-run", "-n"} & set(args.rest)):
        environment["MRPIPE_OUTPUT"] = "quiet" if args.quiet else "steps"  # instead of Snakemake's messages
    os.execve(sys.executable, command_line(args), environment)


command = Command(
    summary="run the workflow: exports to stores, models, tables and report",
    description="Targets: stores, runs, table1 … table7, figure3 … figure6, paper, or a suite of your own.\n"
    "Results are written to results/ in the current folder. After an interruption, run the same command again.",
    epilog="examples:\n  mrpipe run --cores 8                               the demo: simulated exports\n"
    "  mrpipe run --cores 8 --config my.yaml              your exports\n"
    "  mrpipe run table2 --config my.yaml -n              what would run\n"
    "  mrpipe run --profile slurm                         on a cluster\n"
    "  mrpipe run --cores 8 -- --keep-going               Snakemake's own options come after --",
    add_arguments=_add_arguments,
    run=_run,
    words={"profile": lambda: PROFILES},
    passes_on=True,
)
