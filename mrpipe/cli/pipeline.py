"""The pipeline's and the store's commands: simulate, check, build, show, verify and the rest."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrpipe.cli.command import Command, unclaimed
from mrpipe.cli.help import COMMANDS as TEXTS
from mrpipe.cli.help import STEPS, datasets_page, options_page
from mrpipe.locks import output_file, output_folder
from mrpipe.options import parse_assignments
from mrpipe.privacy import printable

_LOG = logging.getLogger(__name__)


def _dataset(args: Namespace) -> Any:
    from mrpipe.datasets import get_dataset

    return get_dataset(args.dataset)


def _init(args: Namespace) -> None:
    from mrpipe.datasets.tables.propose import init

    print(init(args.files, args.out, overwrite=args.overwrite))


def _fetch(args: Namespace) -> None:
    from mrpipe.cli.run import project_folder
    from mrpipe.errors import UsageError, did_you_mean
    from mrpipe.fetch.download import catalogue, fetch

    known = catalogue()
    if unknown := [f"no data set {name!r}. {did_you_mean(name, known)}" for name in args.names if name not in known]:
        raise UsageError("; ".join(unknown))
    if args.list:
        print("\n".join(map(str, known.values())))
        return
    if manual := [str(known[name]) for name in args.names if not known[name].files]:
        raise UsageError("\n".join(manual))
    chosen = [known[name] for name in args.names] or [entry for entry in known.values() if entry.files]
    fetch(chosen, args.out, project_folder() / "workflow/config/examples/tables", _LOG.info)
    print("\n".join(str(args.out / entry.name) for entry in chosen))


def _simulate(args: Namespace) -> None:
    from mrpipe.stages.simulate import simulate
    from mrpipe.store.layout import truth_folder

    simulate(_dataset(args), args.out, parse_assignments(args.set), overwrite=args.overwrite)
    print(f"simulated export: {args.out}\nground truth:     {truth_folder(args.out)}")


def _check(args: Namespace) -> None:
    from mrpipe.stages.check import check, closing, summary, write_check

    chosen = {name: getattr(args, name) for name in ("modalities", "schemes", "seed")}
    inputs = _dataset(args), args.raw, *([args.work] if args.work else []), parse_assignments(args.set)
    result = (write_check if args.work else check)(*inputs, **chosen)
    lines = [f"{args.dataset}: {result['origin']}, release {result['release']}, input files: {len(result['inputs'])}"]
    lines += [f"  {line}" for line in (*(f"note: {note}" for note in result["notes"]), *summary(result))]
    print(printable("\n".join([*lines, f"{args.dataset}: {closing(result)}"])))


def _cohort(args: Namespace) -> None:
    from mrpipe.stages.cohort import build_cohort

    print(f"cohort: {build_cohort(_dataset(args), args.raw, args.work, parse_assignments(args.set))} samples")


def _prepare(args: Namespace) -> None:
    from mrpipe.stages.prepare import prepare

    print(prepare(_dataset(args), args.modality, args.part, args.raw, args.work, parse_assignments(args.set)))


def _ingest(args: Namespace) -> None:
    from mrpipe.stages.ingest import ingest

    rows = ingest(_dataset(args), args.modality, args.raw, args.work, parse_assignments(args.set))
    print(f"{args.modality}: {rows} rows")


def _qc(args: Namespace) -> None:
    from mrpipe.stages.qc import write_qc

    print(f"{write_qc(_dataset(args), args.modality, args.work, args.out)}: qc.parquet, contact_sheet.png")


def _samples(args: Namespace) -> None:
    from mrpipe.stages.samples import assemble_samples

    print(f"samples: {assemble_samples(_dataset(args), args.work, args.modalities)}")


def _split(args: Namespace) -> None:
    from mrpipe.stages.split import make_split

    print(f"{args.scheme}: {make_split(_dataset(args), args.work, args.scheme, seed=args.seed, ids=args.ids)}")


def _seal(args: Namespace) -> None:
    from mrpipe.stages.seal import seal

    print(f"sealed {args.store}: store_id {seal(_dataset(args), args.work, args.store, args.schemes)}")


def _build(args: Namespace) -> None:
    from mrpipe.stages.build import build

    chosen = {name: getattr(args, name) for name in ("modalities", "schemes", "seed", "overwrite")}
    store_id = build(_dataset(args), args.raw, args.out, parse_assignments(args.set), **chosen, report=_LOG.info)
    print(f"sealed {args.out}: store_id {store_id}")


def _verify(args: Namespace) -> None:
    from mrpipe.store.reader import open_store

    store = open_store(args.store)
    store.verify(deep=args.deep)
    how = "every file hashed and every value scanned" if args.deep else "sizes, row counts and invariants"
    print(f"{args.store}: intact ({how}); store_id {store.store_id}")


def _show(args: Namespace) -> None:
    from mrpipe.store.reader import open_store
    from mrpipe.store.show import show

    show(open_store(args.store))


def _audit(args: Namespace) -> None:
    from mrpipe.store.audit import audit
    from mrpipe.store.reader import open_verified
    from mrpipe.store.show import show_audit

    store = open_verified(args.store)
    show_audit(audit(store, task=args.task, scheme=args.scheme, threshold=args.threshold, alpha=args.alpha))


def _export(args: Namespace) -> None:
    from mrpipe.store.export import export
    from mrpipe.store.reader import open_verified

    for path in export(open_verified(args.store), args.out, args.format, args.modalities):
        print(path)


def _mask(args: Namespace) -> None:
    from mrpipe.experiment.missingness import Missingness, read_realised, write_masks
    from mrpipe.store.reader import open_verified

    own = {name: getattr(args, name) for name in ("mechanism", "p", "rate", "seed", "strength", "task")}
    view = tuple(args.modalities or ())
    settings = Missingness(**own, modalities=view, redraw=not args.no_redraw, n_blocks=args.blocks)
    for pattern, n in write_masks(open_verified(args.store), settings, args.out).items():
        print(f"{n:8d}  {pattern}")
    for group, rate in read_realised(args.out).items():
        print(f"{rate:8.1%}  hidden of {group}")


def _options(args: Namespace) -> None:
    print(datasets_page() if args.dataset is None else options_page(_dataset(args)))


Add = Callable[[ArgumentParser], None]


def _argument(*names: str, **settings: Any) -> Add:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument(*names, **settings)

    return add


def _path(flag: str, help: str, *, required: bool = True) -> Add:
    return _argument(flag, type=Path, required=required, metavar="PATH", help=help)


def _modalities(help: str = "default: all", *, required: bool = False) -> Add:
    return _argument("--modalities", nargs="+", required=required, metavar="NAME", help=help)


def _seed(of: str) -> Add:
    return _argument("--seed", type=int, default=0, help=f"seed of {of} (default: 0)")


def _all(*added: Add) -> Add:
    def add(parser: ArgumentParser) -> None:
        for function in added:
            function(parser)

    return add


def _dataset_names() -> Sequence[str]:
    from mrpipe.datasets import dataset_names

    return dataset_names()


def _dataset_name(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help=f"one of: {', '.join(_dataset_names())}")


_modality = _all(_dataset_name, _argument("modality", metavar="MODALITY", help="a modality of the dataset"))
_values = _argument("--show-values", action="store_true", help="print cells of the data in messages, not their kind")
_raw = _all(_path("--raw", "folder of the export"), _values)
_work = _path("--work", "folder of intermediate files")
_store_folder = _path("--store", "folder of the store, which is replaced as a whole")
_store = _argument("store", type=Path, metavar="STORE", help="folder of a sealed store")
_part = _argument("--part", type=int, required=True, metavar="K", help="number of the part, from 0")
_choice = _all(
    _modalities("default: all that the export contains"),
    _argument("--schemes", nargs="*", metavar="NAME", help="split schemes; default: all of the dataset"),
    _seed("splits that are drawn at random"),
)
_options_help = "options of the dataset (mrpipe options DATASET lists them)"
_set = _argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help=_options_help)
_replace = _argument(
    "--overwrite", action="store_true", help="replace a finished output of another dataset, export or other options"
)
_init_arguments = _all(
    _argument("dataset", choices=["tables"], help="the only dataset that needs a declaration"),
    _argument("files", type=Path, nargs="+", metavar="FILE", help="your tables, or folders of tables"),
    _path("--out", "YAML file to write (default: tables.yaml in the folder of the tables)", required=False),
    _argument("--overwrite", action="store_true", help="replace a declaration that exists"),
    _values,
)
_checked = _path("--work", "also write checked.json to this folder, for the steps that follow", required=False)
_split_arguments = _all(
    _argument("--scheme", required=True, help="a split scheme of the dataset, or a name for your id list"),
    _seed("schemes that are drawn at random"),
    _path("--ids", "JSON file with the lists train, val and test of sample or subject ids", required=False),
)
_kept = _argument("--schemes", nargs="+", metavar="NAME", help="splits of the store; default: all in PATH/store")
_deep = _argument("--deep", action="store_true", help="also hash every file and scan every value")
_threshold = "AUROC above which a feature is reported (default: 0.9)"
_alpha = "probability of a finding in a modality without a leak (default: 0.05; 1 also lists chance findings)"
_audit_arguments = _all(
    _store,
    _values,
    _argument("--task", help="label to test against (default: the store's first)"),
    _argument("--scheme", help="split whose training rows are used (default: the store's own)"),
    _argument("--threshold", type=float, default=0.9, help=_threshold),
    _argument("--alpha", type=float, default=0.05, help=_alpha),
)
_export_folder = _path("--out", "folder of the export; the ground truth is written to PATH.truth")
_ingested = _modalities("the ingested modalities", required=True)
_format = _argument("--format", choices=("csv", "npz"), default="csv", help="default: csv")


def _fetch_arguments(parser: ArgumentParser) -> None:
    from mrpipe.fetch.download import FOLDER

    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all that can be downloaded)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help=f"default: {FOLDER}")
    parser.add_argument("--list", action="store_true", help="list the data sets with size and licence")


def _mask_arguments(parser: ArgumentParser) -> None:
    _store(parser)
    from mrpipe.experiment.missingness import MECHANISMS, RATES, Missingness, parse_p

    default = Missingness()
    parser.add_argument("--mechanism", default=default.mechanism, help=f"one of {', '.join(MECHANISMS)}")
    p = "drop probability, or one per modality: audio=0.5,text=0.1; standard deviation for gaussian"
    parser.add_argument("--p", type=parse_p, default=default.p, metavar="P", help=f"{p} (default: {default.p})")
    rate = "nominal: p per draw, before redrawing; marginal: p is the rate at which a modality is really hidden"
    parser.add_argument("--rate", choices=RATES, default=default.rate, help=f"{rate} (default: {default.rate})")
    _seed("the draw")(parser)
    _modalities("modalities that may be hidden (default: all)")(parser)
    parser.add_argument("--no-redraw", action="store_true", help="allow a sample to lose its last modality")
    strength = f"strength of the mnar mechanisms, 0 to 1 (default: {default.strength})"
    parser.add_argument("--strength", type=float, default=default.strength, help=strength)
    blocks = f"number of blocks of `block` (default: {default.n_blocks})"
    parser.add_argument("--blocks", type=int, default=default.n_blocks, help=blocks)
    parser.add_argument("--task", help="label of mnar_label (default: the store's first task)")
    _path("--out", "Parquet file to write")(parser)


_TABLE: dict[str, tuple[Add, Callable[[Namespace], None]]] = {
    "fetch": (_fetch_arguments, _fetch),
    "init": (_init_arguments, _init),
    "simulate": (_all(_dataset_name, _export_folder, _set, _replace), _simulate),
    "check": (_all(_dataset_name, _raw, _checked, _choice, _set), _check),
    "build": (_all(_dataset_name, _raw, _path("--out", "folder of the store"), _choice, _set, _replace), _build),
    "options": (_argument("dataset", nargs="?", metavar="DATASET", help="default: list the datasets"), _options),
    "show": (_store, _show),
    "verify": (_all(_store, _deep), _verify),
    "audit": (_audit_arguments, _audit),
    "mask": (_mask_arguments, _mask),
    "export": (_all(_store, _path("--out", "folder to write to"), _format, _modalities()), _export),
    "cohort": (_all(_dataset_name, _raw, _work, _set), _cohort),
    "prepare": (_all(_modality, _part, _raw, _work, _set), _prepare),
    "ingest": (_all(_modality, _raw, _work, _set), _ingest),
    "qc": (_all(_modality, _work, _path("--out", "folder of qc.parquet and contact_sheet.png")), _qc),
    "samples": (_all(_dataset_name, _work, _ingested), _samples),
    "split": (_all(_dataset_name, _work, _split_arguments), _split),
    "seal": (_all(_dataset_name, _work, _store_folder, _kept), _seal),
}

_CLAIMS = {
    "fetch": output_folder("a folder of data sets", None),
    "simulate": output_folder("a simulated export", None),
    "build": output_folder("a store", "manifest.json samples.parquet modalities", "raw"),
    "qc": output_folder("quality control", "qc.parquet contact_sheet.png"),
    "export": output_folder("an export of a store", "samples.csv", "store"),
    "mask": output_file("store"),
}

COMMANDS = {
    name: Command(
        summary=TEXTS[name]["summary"],
        description=TEXTS[name]["text"],
        add_arguments=add,
        run=run,
        step=name in STEPS,
        claim=_CLAIMS.get(name, unclaimed),
        words={} if name == "init" else {"dataset": _dataset_names},
    )
    for name, (add, run) in _TABLE.items()
}
