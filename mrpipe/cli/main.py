"""The command line: `mrpipe VERB ...`. Exit code 0 done, 2 wrong use, 3 the data are at fault."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrpipe import cli_help as text
from mrpipe.errors import MrpipeError, UsageError


def _settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set wants key=value, got {pair!r}")
        settings[key] = value
    return settings


def _dataset(args: argparse.Namespace) -> Any:
    from mrpipe.datasets import get_dataset

    return get_dataset(args.dataset)


def _simulate(args: argparse.Namespace) -> None:
    from mrpipe.layout import truth_folder
    from mrpipe.stages.simulate import simulate

    simulate(_dataset(args), args.out, _settings(args.set))
    print(f"simulated export: {args.out}\nits truth:        {truth_folder(args.out)}")


def _check(args: argparse.Namespace) -> None:
    from mrpipe.stages.check import check, write_check

    settings = _settings(args.set)
    result = (
        write_check(_dataset(args), args.raw, args.work, settings)
        if args.work
        else check(_dataset(args), args.raw, settings)
    )
    print(f"{args.dataset}: no fault. {result['origin']}, release {result['release']}, "
          f"modalities {', '.join(result['modalities'])}, {len(result['inputs'])} inputs")  # fmt: skip
    for note in result["notes"]:
        print(f"  note: {note}")


def _cohort(args: argparse.Namespace) -> None:
    from mrpipe.stages.cohort import build_cohort

    print(f"cohort: {build_cohort(_dataset(args), args.raw, args.work, _settings(args.set))} samples")


def _prepare(args: argparse.Namespace) -> None:
    from mrpipe.stages.prepare import prepare

    print(prepare(_dataset(args), args.modality, args.part, args.raw, args.work, _settings(args.set)))


def _ingest(args: argparse.Namespace) -> None:
    from mrpipe.stages.ingest import ingest

    rows = ingest(_dataset(args), args.modality, args.raw, args.work, args.store, _settings(args.set))
    print(f"{args.modality}: {rows} rows")


def _qc(args: argparse.Namespace) -> None:
    from mrpipe.stages.qc import write_qc

    print(f"{write_qc(_dataset(args), args.modality, args.work, args.out)}: qc.parquet, contact_sheet.png")


def _samples(args: argparse.Namespace) -> None:
    from mrpipe.stages.samples import assemble_samples

    print(f"samples: {assemble_samples(_dataset(args), args.work, args.store, args.modalities)}")


def _split(args: argparse.Namespace) -> None:
    from mrpipe.stages.split import make_split

    print(f"{args.scheme}: {make_split(_dataset(args), args.store, args.scheme, seed=args.seed, ids=args.ids)}")


def _seal(args: argparse.Namespace) -> None:
    from mrpipe.stages.seal import seal

    print(f"sealed {args.store}: store_id {seal(_dataset(args), args.work, args.store, args.schemes)}")


def _build(args: argparse.Namespace) -> None:
    from mrpipe.stages.build import build

    build(_dataset(args), args.raw, args.out, _settings(args.set), modalities=args.modalities, schemes=args.schemes,
          seed=args.seed, report=print)  # fmt: skip


def _verify(args: argparse.Namespace) -> None:
    from mrpipe.store import open_store

    store = open_store(args.store)
    store.verify(deep=args.deep)
    how = "every file hashed and every value scanned" if args.deep else "sizes, row counts and invariants"
    print(f"{args.store}: whole ({how}); {store.store_id}")


def _show(args: argparse.Namespace) -> None:
    from mrpipe.show import show
    from mrpipe.store import open_store

    show(open_store(args.store))


def _audit(args: argparse.Namespace) -> None:
    from mrpipe.audit import audit
    from mrpipe.show import show_audit
    from mrpipe.store import open_store

    store = open_store(args.store)
    show_audit(audit(store, task=args.task, scheme=args.scheme, threshold=args.threshold, alpha=args.alpha))


def _export(args: argparse.Namespace) -> None:
    from mrpipe.export import export
    from mrpipe.store import open_store

    for path in export(open_store(args.store), args.out, args.format, args.modalities):
        print(path)


def _mask(args: argparse.Namespace) -> None:
    from mrpipe.missingness import Missingness, write_masks
    from mrpipe.store import open_store

    settings = Missingness(
        mechanism=args.mechanism, p=args.p, seed=args.seed, modalities=tuple(args.modalities or ()),
        redraw=not args.no_redraw, strength=args.strength, n_blocks=args.blocks, task=args.task,
    )  # fmt: skip
    for pattern, n in write_masks(open_store(args.store), settings, args.out).items():
        print(f"{n:8d}  {pattern}")


def _code_hash(args: argparse.Namespace) -> None:
    from mrpipe.codehash import code_hash

    print(code_hash(*args.entries))


def _parser() -> argparse.ArgumentParser:
    from mrpipe.datasets import dataset_names

    parser = argparse.ArgumentParser(
        prog="mrpipe", description=text.PROGRAM, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], *, dataset: bool = True) -> argparse.ArgumentParser:
        summary, description = text.VERBS[name]
        command = verbs.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(run=run)
        if dataset:
            command.add_argument("dataset", metavar="DATASET", help=f"one of: {', '.join(dataset_names())}")
        return command

    def path(command: argparse.ArgumentParser, flag: str, help: str, *, required: bool = True) -> None:
        command.add_argument(flag, type=Path, required=required, metavar="PATH", help=help)

    def options(command: argparse.ArgumentParser) -> None:
        command.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help="options of the dataset "
                             "(mrpipe options DATASET lists them)")  # fmt: skip

    simulate = verb("simulate", _simulate)
    path(simulate, "--out", "folder of the export; the truth goes to PATH.truth beside it")
    options(simulate)
    check = verb("check", _check)
    path(check, "--raw", "folder of the export")
    path(check, "--work", "also write checked.json there, for the steps that follow", required=False)
    options(check)
    cohort = verb("cohort", _cohort)
    path(cohort, "--raw", "folder of the export")
    path(cohort, "--work", "folder of intermediate files")
    options(cohort)
    prepare = verb("prepare", _prepare)
    prepare.add_argument("modality", metavar="MODALITY")
    prepare.add_argument("--part", type=int, required=True, metavar="K", help="which part, from 0")
    path(prepare, "--raw", "folder of the export")
    path(prepare, "--work", "folder of intermediate files")
    options(prepare)
    ingest = verb("ingest", _ingest)
    ingest.add_argument("modality", metavar="MODALITY")
    path(ingest, "--raw", "folder of the export")
    path(ingest, "--work", "folder of intermediate files")
    path(ingest, "--store", "folder of the store")
    options(ingest)
    qc = verb("qc", _qc)
    qc.add_argument("modality", metavar="MODALITY")
    path(qc, "--work", "folder of intermediate files")
    path(qc, "--out", "folder of qc.parquet and contact_sheet.png")
    samples = verb("samples", _samples)
    path(samples, "--work", "folder of intermediate files")
    path(samples, "--store", "folder of the store")
    samples.add_argument("--modalities", nargs="+", required=True, metavar="NAME", help="the ingested modalities")
    split = verb("split", _split)
    path(split, "--store", "folder of the store")
    split.add_argument("--scheme", required=True, help="a scheme of the dataset, or the name for an id list")
    split.add_argument("--seed", type=int, default=0, help="of schemes that draw (default 0)")
    path(split, "--ids", "JSON lists train, val, test of sample or subject ids", required=False)
    seal = verb("seal", _seal)
    path(seal, "--work", "folder of intermediate files")
    path(seal, "--store", "folder of the store")
    seal.add_argument("--schemes", nargs="+", metavar="NAME", help="the splits that belong to it; others are deleted")
    build = verb("build", _build)
    path(build, "--raw", "folder of the export")
    path(build, "--out", "folder of the store")
    build.add_argument("--modalities", nargs="+", metavar="NAME", help="default: all that the export holds")
    build.add_argument("--schemes", nargs="+", metavar="NAME", help="default: all of the dataset")
    build.add_argument("--seed", type=int, default=0, help="of splits that draw (default 0)")
    options(build)
    for name, run in (
        ("verify", _verify),
        ("show", _show),
        ("audit", _audit),
        ("export", _export),
        ("mask", _mask),
    ):
        verb(name, run, dataset=False).add_argument("store", type=Path, metavar="STORE")
    choices = verbs.choices
    choices["verify"].add_argument("--deep", action="store_true", help="hash every file and scan every value")
    choices["audit"].add_argument("--task", help="classification task (default: the store's first)")
    choices["audit"].add_argument("--scheme", help="its training rows are looked at (default: the store's own split)")
    choices["audit"].add_argument("--threshold", type=float, default=0.9, help="of the AUROC (default 0.9)")
    choices["audit"].add_argument(
        "--alpha", type=float, default=0.05, help="chance of a finding without a leak (default 0.05; 1: list luck, too)"
    )
    path(choices["export"], "--out", "folder to write to")
    choices["export"].add_argument("--format", choices=("csv", "npz"), default="csv")
    choices["export"].add_argument("--modalities", nargs="+", metavar="NAME", help="default: all")
    mask = choices["mask"]
    mask.add_argument(
        "--mechanism", default="mcar", help="mcar, mnar_label, mnar_value, block, timestep_drop, gaussian"
    )
    mask.add_argument("--p", type=float, default=0.3, help="drop probability; sd for gaussian (default 0.3)")
    mask.add_argument("--seed", type=int, default=0)
    mask.add_argument("--modalities", nargs="+", metavar="NAME", help="the view of the store (default: all)")
    mask.add_argument("--no-redraw", action="store_true", help="let a sample lose its last modality")
    mask.add_argument("--strength", type=float, default=0.8, help="of the mnar mechanisms, 0 to 1 (default 0.8)")
    mask.add_argument("--blocks", type=int, default=20, help="number of blocks of `block` (default 20)")
    mask.add_argument("--task", help="label of mnar_label (default: the store's first task)")
    path(mask, "--out", "Parquet file to write")
    verb("options", lambda args: print(text.options_page(_dataset(args))))
    hashes = verb("code-hash", _code_hash, dataset=False)
    hashes.add_argument("entries", nargs="+", metavar="MODULE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except MrpipeError as error:
        print(f"mrpipe {args.verb}: {error}", file=sys.stderr)
        return error.exit_code
    return 0
