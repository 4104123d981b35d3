"""Names of chromosomes."""

# Longer than any chromosome; positions are encoded together with the chromosome.
POSITION_LIMIT = 10**9
ALIASES = {"23": "X", "24": "Y", "25": "XY", "26": "MT", "M": "MT"}
ORDER = {c: i for i, c in enumerate([*(str(c) for c in range(1, 23)), "X", "Y", "XY", "MT"], start=1)}


def plain_name(chromosome: str) -> str:
    """Normalise the name of a chromosome: `chr1` → `1`, `23` → `X`, `M` → `MT`."""
    plain = chromosome.upper().removeprefix("CHR")
    return ALIASES.get(plain, plain)
