"""Convert VCF and BCF files to a PLINK set: a program that reads a job from standard input.

Records are streamed through htslib (cyvcf2), so that memory does not depend on their number. It has a process of its
own (`datasets.adni.genomic.plink.open_vcf`), because htslib crashes on some damaged files.
"""

import itertools
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpipe.budget import child
from mrpipe.errors import DataError, Fault
from mrpipe.genetics.chromosomes import ORDER, POSITION_LIMIT, plain_name
from mrpipe.genetics.packing import MISSING, bed_rows

DAMAGED = "The file is damaged or truncated. Download it again."
_BLOCK = 4096
_NUCLEOTIDES = frozenset("ACGTacgt")
# Quality of imputation as minimac, Beagle and IMPUTE name it.
_QUALITY = ("R2", "DR2", "INFO")
_TYPES = {"FORMAT": {"GT": "String", "DS": "Float"}, "INFO": dict.fromkeys(_QUALITY, "Float")}
# The last block of a file that bgzip wrote.
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def _fault(file: str, expected: str, found: str, fix: str = DAMAGED, **place: Any) -> DataError:
    return DataError(Fault(file=file, expected=expected, found=found, fix=fix, **place))


def _open(path: Path, shown: str) -> Any:
    """A `cyvcf2.VCF`; the fields that are read are declared, because htslib takes undeclared ones for text."""
    with path.open("rb") as handle:
        start = handle.read(16)
        handle.seek(max(path.stat().st_size - len(_END), 0))
        end = handle.read()
    if (start[12:14] == b"BC" and end != _END) or (start[:2] == b"##" and end[-1:] != b"\n"):
        raise _fault(shown, "a complete file", "one without its end")
    import cyvcf2

    try:
        vcf = cyvcf2.VCF(str(path), gts012=True, strict_gt=True)
        for kind, types in _TYPES.items():
            for name in types.keys() - set(re.findall(rf"##{kind}=<ID=(\w+)", vcf.raw_header)):
                vcf.add_to_header(f'##{kind}=<ID={name},Number=1,Type={types[name]},Description="">')
        if not vcf.samples:
            raise ValueError("no people")
    except Exception as error:  # cyvcf2 raises Exception itself
        raise _fault(shown, "a VCF or BCF of people, in UTF-8", "another file") from error
    return vcf


def _records(vcf: Any, shown: str) -> Iterator[tuple[int, Any]]:
    """Numbers and records; a record that htslib does not read is an error."""
    row = 0
    try:
        for row, record in enumerate(vcf, start=1):
            yield row, record
    except Exception as error:  # cyvcf2 raises Exception itself
        raise _fault(shown, "a record of a VCF", "one that htslib does not read", row=row + 1) from error


def _quality(record: Any) -> float:
    """Quality of imputation; infinite if the record has none."""
    return next((float(q) for f in _QUALITY if (q := record.INFO.get(f)) is not None), np.inf)


def _calls(record: Any, field: str, uncertainty: float) -> NDArray[np.uint8]:
    """Copies of ALT (people,), 3 if missing.

    Raises:
        ValueError: the record lacks the field, or a dosage is not between 0 and 2.
    """
    if field not in record.FORMAT:
        raise ValueError(f"no {field}")
    if field == "GT":
        return np.asarray(record.gt_types, dtype=np.uint8)
    dosage = np.asarray(record.format("DS"), dtype=np.float64)[:, 0]
    if not -0.05 < np.nanmin(dosage, initial=0) <= np.nanmax(dosage, initial=0) < 2.05:
        raise ValueError("a DS that is not between 0 and 2")
    nearest = np.rint(np.nan_to_num(dosage))
    return np.where(np.abs(dosage - nearest) <= uncertainty + 1e-6, nearest, MISSING).astype(np.uint8)


@dataclass
class Conversion:
    """Which SNPs are converted, and how.

    Attributes:
        r2, maf: minimum quality of imputation, where INFO has one, and minimum minor allele frequency.
        field: FORMAT field of the calls, GT or DS; the other one where a file lacks it.
        uncertainty: a DS is a call if it differs from a whole number by at most this, else it is missing.
        calls: convert the calls; else all bytes of the .bed are 0, which takes a fraction of the time.
    """

    r2: float = 0.0
    maf: float = 0.0
    field: str = "GT"
    uncertainty: float = 0.1
    calls: bool = True

    def __post_init__(self) -> None:
        self._last: dict[str, tuple[str, int]] = {}
        self._left_out: Counter[str] = Counter()
        self._dropped = array("q")

    def _drop(self, reason: str, n: int, chromosome: str, position: int) -> None:
        self._left_out[reason] += n
        self._dropped.append(ORDER.get(chromosome, 99) * POSITION_LIMIT + position)

    def _snps(
        self, vcf: Any, shown: str, field: str
    ) -> Iterator[tuple[str, str, int, str, str, NDArray[np.uint8] | None]]:
        """SNPs of one file: chromosome, name, position, ALT, REF, and calls of `field` (people,)."""
        for (name, position), site in itertools.groupby(_records(vcf, shown), lambda x: (x[1].CHROM, x[1].POS)):
            chromosome, records = plain_name(name), list(site)
            file, last = self._last.get(chromosome, (shown, 0))
            if file != shown:
                fix = "Remove the copy, or join the parts with bcftools concat -a."
                raise _fault(shown, "one file per chromosome", f"chromosome {chromosome} also in {file}", fix)
            if position < last:
                found, fix = f"position {position} after {last}", "Sort it with bcftools sort."
                raise _fault(shown, "positions in ascending order", found, fix, row=records[0][0])
            self._last[chromosome] = shown, position
            snps = [(row, r) for row, r in records if {r.REF, *r.ALT} <= _NUCLEOTIDES]
            good = [(row, r) for row, r in snps if not _quality(r) < self.r2]
            self._left_out["not SNPs"] += len(records) - len(snps)
            if len(good) < len(snps):
                self._drop(f"with R2 below {self.r2:g}", len(snps) - len(good), chromosome, position)
            if len({a for _, r in good for a in r.ALT}) > 1:
                self._drop("at sites with several alternative alleles", len(good), chromosome, position)
                continue
            for row, r in good:
                a1, a2 = (r.ALT[0] if r.ALT else "0").upper(), r.REF.upper()
                label = r.ID or f"{chromosome}:{position}:{a2}:{a1}"
                try:
                    if "\ufffd" in label:
                        raise ValueError("an ID that is not UTF-8")
                    calls = _calls(r, field, self.uncertainty) if self.calls else None
                except ValueError as error:
                    raise _fault(shown, "valid calls", str(error), row=row) from error
                yield chromosome, label, position, a1, a2, calls

    def run(self, files: Sequence[str], names: Sequence[str], prefix: str) -> dict[str, Any]:
        """Write `prefix`.bed, .bim and .fam, and .npy with the positions of SNPs that are not used.

        Returns:
            note: number of records, and of those that are not used.
            lengths: per file, pairs (chromosome, length) of its header.

        Raises:
            DataError: a file is damaged or not sorted, or lacks GT and DS, or files have other people or a chromosome
                in common.
        """
        people: list[str] = []
        lengths, n_snps = [], 0
        with open(f"{prefix}.bed", "wb") as bed, open(f"{prefix}.bim", "w", encoding="utf-8") as bim:
            bed.write(b"\x6c\x1b\x01")
            for path, shown in zip(map(Path, files), names, strict=True):
                vcf = _open(path, shown)
                if people and vcf.samples != people:
                    found = f"{len(vcf.samples)} people, or in another order"
                    raise _fault(shown, f"the {len(people)} people of {names[0]}", found, "Remove files of other sets.")
                people = vcf.samples
                contigs = re.findall(r"##contig=<ID=([^,>]+),(?:.*,)?length=(\d+)", vcf.raw_header)
                lengths.append([(plain_name(c), int(n)) for c, n in contigs])
                first = next(_records(vcf, shown), None)
                held = first[1].FORMAT if first else []
                field = next((f for f in (self.field, "GT", "DS") if f in held), None)
                if field is None:
                    fix = "Convert it: plink2 --vcf FILE dosage=HDS (or dosage=GP) --make-bed --out NAME."
                    raise _fault(shown, "GT or DS", ", ".join(held) or "no record", fix, column="FORMAT")
                vcf = _open(path, shown)
                if not self.calls and path.suffix.lower() != ".bcf":
                    # htslib skips the calls.
                    vcf.set_samples([])
                rows = self._snps(vcf, shown, field)
                while block := list(itertools.islice(rows, _BLOCK)):
                    keep = np.ones(len(block), dtype=np.bool_)
                    if self.calls:
                        copies = np.array([row[-1] for row in block])
                        n = (called := copies != MISSING).sum(axis=1)
                        minor = np.where(called, copies, 0).sum(axis=1)
                        keep = np.minimum(minor, 2 * n - minor) >= self.maf * 2 * n
                        bed.write(bed_rows(copies[keep].T).tobytes())
                    for row, kept in zip(block, keep.tolist(), strict=True):
                        if kept:
                            bim.write("{}\t{}\t0\t{}\t{}\t{}\n".format(*row))
                        else:
                            self._drop(f"with a minor allele frequency below {self.maf:g}", 1, row[0], row[2])
                    n_snps += int(keep.sum())
            bed.truncate(3 + n_snps * -(-len(people) // 4))
        total = sum(self._left_out.values()) + n_snps
        reasons = ", ".join(f"{n} {reason}" for reason, n in self._left_out.items() if n)
        note = f"{total} records" + (f"; not used: {reasons}" if reasons else "")
        if not n_snps:
            raise _fault(", ".join(names), "biallelic SNPs", note, "")
        fam = "".join("0 {} 0 0 0 -9\n".format(re.sub(r"\s", "_", p)) for p in people)
        Path(f"{prefix}.fam").write_text(fam, encoding="utf-8")
        np.save(f"{prefix}.npy", np.array(self._dropped, dtype=np.int64))
        return {"note": note, "lengths": lengths}


def run_job(job: dict[str, Any]) -> bytes:
    return json.dumps(Conversion(**job["settings"]).run(job["files"], job["names"], job["prefix"])).encode()


if __name__ == "__main__":
    sys.exit(child(run_job))
