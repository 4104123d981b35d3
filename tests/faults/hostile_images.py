"""Hostile images, archives of screens, genotypes, hierarchies, masks and MIMIC tables; see `hostile`."""

import struct
import zlib
from pathlib import Path

import numpy as np

from tests.faults.hostile import case, deflate_zip, gz, member

# --- NIfTI -----------------------------------------------------------------------------------------------------------


def load_nifti(folder: Path) -> None:
    from mrpipe.imaging.nifti import read_scan

    (path,) = folder.glob("a.nii*")
    read_scan(path, path.name)


def header(
    shape: tuple[int, ...], *, code: int = 16, offset: float = 352, slope: float = 2, extension: int = 0
) -> bytes:
    """Header of a NIfTI-1 file, by default of scaled float32 voxels of 1 mm."""
    dims = struct.pack("<8h", len(shape), *shape, *([1] * (7 - len(shape))))
    pixdim = struct.pack("<8f", 1, *([1.0] * 7))
    bits = {2: 8, 4: 16, 16: 32, 64: 64}[code]
    data = struct.pack("<i", 348) + bytes(36) + dims + bytes(14) + struct.pack("<hhh", code, bits, 0) + pixdim
    data += struct.pack("<fff", offset, slope, 0.5) + bytes(3) + b"\2" + bytes(128)
    data += struct.pack("<hh", 0, 1) + bytes(24) + struct.pack("<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0) + bytes(16)
    return data + b"n+1\0" + (b"\1\0\0\0" + struct.pack("<ii", extension, 6) if extension else bytes(4))


def nifti(name: str, data: bytes, file: str = "a.nii.gz") -> None:
    case(load_nifti, name)(lambda f: (f / file).write_bytes(data))


def _nifti_cases() -> None:
    zeros = gz(3 * 2**30)
    nifti("nifti.gz of zeros", member(header((1500, 1500, 1400), code=2)) + zeros)
    nifti("nifti.gz of many voxels of a byte", member(header((600, 600, 600), code=2)) + gz(2**28))
    nifti("nifti of 10^15 voxels", header((32000, 32000, 32000)) + bytes(100), "a.nii")
    nifti("nifti.gz of 10^15 voxels", member(header((32000, 32000, 32000)) + bytes(100)))
    nifti("nifti with negative sizes", header((-5, 10, 10)) + bytes(4000), "a.nii")
    nifti("nifti with seven sizes", header((32000,) * 7) + bytes(4000), "a.nii")
    nifti("nifti without voxels", header((0, 10, 10)) + bytes(4000), "a.nii")
    nifti("nifti.gz with a far offset", member(header((10, 10, 10), offset=2e9)) + zeros)
    nifti("nifti.gz with a huge extension", member(header((10, 10, 10), offset=2e9, extension=2**30)) + zeros)
    nifti("nifti.gz of gzip", member(member(header((10, 10, 10))) + zeros))
    nifti("nifti that is zeros", zeros)


_nifti_cases()

# --- PNG, hierarchies and archives of screens ------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, mode: int = 2, extra: bytes = b"") -> bytes:
    data = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)) + extra
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IDAT", zlib.compress(bytes(2**24))) + chunk(b"IEND", b"")


def decode_png(folder: Path) -> None:
    from mrpipe.datasets.images import decode, image_size

    data = (folder / "a.png").read_bytes()
    image_size(data, "a.png")
    decode(data, "a.png")


case(decode_png, "png of 60,000 x 60,000")(lambda f: (f / "a.png").write_bytes(png(60_000, 60_000)))
case(decode_png, "png of 13,000 x 13,000")(lambda f: (f / "a.png").write_bytes(png(13_000, 13_000)))
case(decode_png, "png of 2^31 x 2^31")(lambda f: (f / "a.png").write_bytes(png(2**31 - 1, 2**31 - 1)))
case(decode_png, "png without height")(lambda f: (f / "a.png").write_bytes(png(100, 0)))
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))
case(decode_png, "png with a compressed text")(lambda f: (f / "a.png").write_bytes(png(4_000, 4_000, 2, TEXT)))
case(decode_png, "png with a compressed profile")(
    lambda f: (f / "a.png").write_bytes(png(4_000, 4_000, 2, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27)))))
)


def read_screens(folder: Path) -> None:
    from mrpipe.datasets.enrico.hierarchy import parse_hierarchy
    from mrpipe.raw import Folder

    screens = Folder(folder, "hierarchies")
    for name in sorted(screens.names()):
        screens.parse(name, parse_hierarchy)


def hierarchy(name: str, data: bytes) -> None:
    def write(f: Path) -> None:
        (f / "hierarchies").mkdir()
        (f / "hierarchies" / "1.json").write_bytes(data)

    case(read_screens, name)(write)


case(read_screens, "zip member of zeros")(
    lambda f: (f / "hierarchies.zip").write_bytes(deflate_zip("1.json", 3 * 2**30))
)
hierarchy("json nested 10^6 deep", b"[" * 10**6)
hierarchy("hierarchy nested deep", b'{"children": [' * 10**5 + b"]}" * 10**5)
hierarchy("json with a long number", b'{"bounds": [' + b"9" * 10**6 + b"]}")
hierarchy("json of an infinite number", b'{"bounds": [0, 0, 1e999, -Infinity], "componentLabel": "Text"}')
hierarchy("json of 40 MB", b"[" + b"[]," * (40 * 2**20 // 3) + b"[]]")
hierarchy("json that is cut", b'{"bounds": [0, 0,')


@lambda make: case(read_screens, "json of 1 GB")(make)
def _(f: Path) -> None:
    (f / "hierarchies").mkdir()
    with (f / "hierarchies" / "1.json").open("wb") as handle:
        handle.truncate(2**30)


@lambda make: case(read_screens, "zip of LZMA members")(make)
def _(f: Path) -> None:
    import zipfile

    with zipfile.ZipFile(f / "hierarchies.zip", "w", zipfile.ZIP_LZMA) as archive, archive.open("1.json", "w") as out:
        for _ in range(20):
            out.write(bytes(2**24))


# --- genotypes -------------------------------------------------------------------------------------------------------


def open_vcf(folder: Path) -> None:
    from mrpipe.datasets.adni.genomic.plink import open_vcf
    from mrpipe.genetics.vcf import Conversion

    files = sorted(folder.glob("a.vcf*"))
    open_vcf(files, folder / "out", Conversion())


VCF = '##fileformat=VCFv4.2\n##contig=<ID=1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="">\n'
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
ROW = "1\t{}\trs\tA\tG\t.\tPASS\t.\tGT\t0/1\n"


def vcf(name: str, *parts: bytes) -> None:
    case(open_vcf, name)(lambda f: (f / "a.vcf.gz").write_bytes(b"".join(parts)))


def _vcf_cases() -> None:
    start = member((VCF + COLUMNS + "s1\n").encode())
    vcf("vcf with a line of 3 GB", start, member(b"1\t5\trs\tA\tG\t.\tPASS\t"), gz(3 * 2**30, b"a"))
    vcf("vcf with a header of 3 GB", member(VCF.encode() + b"##"), gz(3 * 2**30, b"a"))
    vcf("vcf of line ends", start, gz(3 * 2**30, b"\n"))
    names = "\t".join(f"s{i}" for i in range(10**6))
    vcf("vcf of 10^6 samples", member((VCF + COLUMNS + names + "\n" + ROW.format(5)).encode()))
    vcf("vcf of one record repeated", start, member(ROW.format(5).encode() * 2**19) * 100)
    vcf("vcf with a huge position", start, member(ROW.format(10**18).encode()))


_vcf_cases()


def open_plink(folder: Path) -> None:
    from mrpipe.datasets.adni.genomic.plink import open_set

    open_set(folder / "a.bed")


def plink(
    name: str, bed: bytes = b"\x6c\x1b\x01\0", bim: bytes = b"1 r 0 5 A C\n", fam: bytes = b"1 1 0 0 0 -9\n"
) -> None:
    def write(f: Path) -> None:
        for suffix, data in {"bed": bed, "bim": bim, "fam": fam}.items():
            (f / f"a.{suffix}").write_bytes(data)

    case(open_plink, name)(write)


plink("bed of other sizes", bed=b"\x6c\x1b\x01" + bytes(100))
plink("bim with a huge position", bim=b"1 r 0 99999999999999999999 A C\n")
plink("fam of one long line", fam=b"1 " * 10**7)
plink("bim without line ends", bim=b"a" * 10**7)
plink("empty bed", bed=b"")


def read_chain(folder: Path) -> None:
    from mrpipe.datasets.adni.genomic.lift import ChainFile

    ChainFile(next(folder.glob("a.chain*")))


def chain(name: str, data: bytes, file: str = "a.chain.gz") -> None:
    case(read_chain, name)(lambda f: (f / file).write_bytes(data))


HEAD = "chain 1 chr1 {0} + 0 {0} chr1 {0} + 0 {0} 1\n"
chain("chain of zeros", gz(3 * 2**30))
chain("chain of blocks", member(HEAD.format(10**9).encode()) + member(b"1 1 1\n" * 2**20) * 500)
chain("chain of absurd sizes", HEAD.format(10**30).encode(), "a.chain")
chain("chain of a long number", HEAD.format("9" * 10**5).encode(), "a.chain")
chain("chain with a huge block", (HEAD.format(2**62) + f"{2**63 - 1} 5 5\n{2**63}\n").encode(), "a.chain")


def read_reference(folder: Path) -> None:
    from mrpipe.datasets.adni.genomic.strand import read_reference

    read_reference(folder / "a.legend.gz", ["1"])


case(read_reference, "legend of one byte")(lambda f: (f / "a.legend.gz").write_bytes(gz(3 * 2**30, b"a")))
case(read_reference, "legend of line ends")(
    lambda f: (f / "a.legend.gz").write_bytes(gz(3 * 2**30, b"\n", b"id chr position a0 a1 ALL\n"))
)

# --- masks and MIMIC -------------------------------------------------------------------------------------------------


def read_masks(folder: Path) -> None:
    from mrpipe.experiment.missingness import read_masks

    read_masks(folder / "a.parquet")


def mask(name: str, text: str, n: int = 1) -> None:
    def write(f: Path) -> None:
        import polars as pl

        from mrpipe.experiment.missingness import MASK_KEY
        from mrpipe.store.parquet import write_frame

        frame = pl.DataFrame(
            {"sample_id": pl.repeat("a", n, eager=True), "modality_mask": pl.zeros(n, pl.UInt16, eager=True)}
        )
        write_frame(f / "a.parquet", frame, metadata={MASK_KEY: text})

    case(read_masks, name)(write)


mask("mask file with nested settings", "[" * 10**5)
mask("mask file with other settings", '{"store_id": "a", "modalities": 5}')
mask("mask file of equal rows", "{}", 10**7)


def scan(folder: Path) -> None:
    from mrpipe.datasets.mimic.scan.scanner import TableScan
    from mrpipe.datasets.mimic.tables import EVENTS

    (path,) = folder.glob("a.*")
    list(TableScan(path, EVENTS["labevents"], np.array([10000000]), shown_as=path.name))


LABS = (
    b"labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum,valueuom,"
)
LABS += b"ref_range_lower,ref_range_upper,flag,priority,comments\n"
ROWS = b"1,10000001,2,3,5,P,2150-01-01 00:00:00,2150-01-01 00:00:00,1,1,mg,1,2,,ROUTINE,\n"


def mimic(name: str, data: bytes, file: str = "a.csv.gz") -> None:
    case(scan, name)(lambda f: (f / file).write_bytes(data))


def _mimic_cases() -> None:
    mimic("mimic with a line of 3 GB", gz(3 * 2**30, b"a", LABS + ROWS + b"1,10000000,2,3,5,P,,,"))
    mimic("mimic with a field without an end", gz(3 * 2**30, b"a", LABS + ROWS + b'1,10000000,2,3,5,P,"'))
    mimic("mimic with a header of 3 GB", gz(3 * 2**30, b"a"))
    mimic("mimic with a header of commas", gz(3 * 2**30, b","))
    mimic("mimic of line ends", gz(3 * 2**30, b"\n", LABS + ROWS))
    mimic("mimic of commas", gz(3 * 2**30, b",", LABS + ROWS))


_mimic_cases()
