"""Small files as text, and options of small trainings, shared by tests of several parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Two epochs of a narrow model.
TRAIN_OPTIONS = ("epochs=2", "hidden=16", "tokens=2", "heads=2", "encoder_hidden=8", "n_experts=2", "expert_ffn=8")
TRAIN_OPTIONS += ("top_k=2", "warmup=0")
TOY_CHAIN = """chain 1000 chr1 247249719 + 99 1000 chr1 249250621 + 199 1110 1
301\t100\t110
500

chain 900 chr2 242951149 + 0 100 chr7 159138663 - 1000 1100 2
100

chain 10 chr1 247249719 + 0 2000 chr1 249250621 + 50000 52000 3
2000
"""
_VCF = """##fileformat=VCFv4.2
##contig=<ID=chr1,length=249250621>
##INFO=<ID=R2,Number=1,Type=Float,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=DS,Number=1,Type=Float,Description="">
"""
_CALLS = ("0|0:0.02", "0|1:1.01", "1|1:1.97", ".|.:.")


def vcf_text(sites: Sequence[Any], copies: Sequence[Sequence[int]], people: Sequence[str]) -> str:
    """A VCF of sites (chrom, id, pos, a1, a2) and copies of A1 by person, 3 if missing; ALT is A1."""
    lines = [_VCF + "\t".join(("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *people))]
    for j, (chrom, name, pos, a1, a2) in enumerate(sites):
        cells = [_CALLS[row[j]] for row in copies]
        lines.append("\t".join((f"chr{chrom}", str(pos), name, a2, a1, ".", "PASS", "R2=0.95", "GT:DS", *cells)))
    return "\n".join(lines) + "\n"
