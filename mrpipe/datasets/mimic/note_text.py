"""Clean clinical notes: sections, de-identification blanks, and text that reveals the outcome."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

# Headings of BIDMC discharge summaries and radiology reports (Johnson et al., MIMIC-IV-Note 2.2), longest first.
_NAMES = (
    "major surgical or invasive procedure|history of present illness|past medical history|"
    "medications on admission|admission medications|discharge medications|discharge disposition|"
    "discharge diagnosis|discharge condition|discharge instructions|followup instructions|"
    "follow-up instructions|brief hospital course|hospital course|pertinent results|transitional issues|"
    "chief complaint|review of systems|physical examination|physical exam|social history|family history|"
    "date of death|cause of death|admission date|discharge date|date of birth|present illness|admission labs|"
    "discharge labs|imaging|facility|allergies|attending|service|impression|indication|comparison|technique|"
    "findings|examination|recommendation|notification|assessment and plan|assessment|medications|labs|vitals|"
    "unit no|name|sex"
)
HEADINGS = tuple(_NAMES.split("|"))
_HEADING = re.compile(
    rf"^[ \t]*(?P<name>{'|'.join(map(re.escape, sorted(HEADINGS, key=len, reverse=True)))})[ \t]*(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
# Sections that state where the patient was discharged to, or that the patient died.
TELLTALE_SECTIONS = frozenset(
    {"discharge disposition", "discharge condition", "facility", "date of death", "cause of death"}
)
# Administrative lines with names, numbers and dates, which are blank after de-identification.
ADMINISTRATIVE = frozenset(
    {"name", "unit no", "admission date", "discharge date", "date of birth", "sex", "service", "attending"}
)
# Phrases of the leak guard, for notes and for titles of ICD codes, by their beginning, which is searched first.
_ALONE = ["expired", "deceased", "died", "dies", "death", "passed away", "pronounced", "autopsy", "hospice", "cmo"]
_ALONE += ["morgue", "made comfortable", "palliative", "goals of care", "organ bank", "dnr", "dni"]
_PHRASES = dict.fromkeys(_ALONE, "") | dict.fromkeys(("comfort ", "comfort-"), "(?:care|measures|focused)")
_PHRASES |= dict.fromkeys(("end of", "end-of"), "[- ]life")
_PHRASES |= {"terminal": r"(?:ly)? (?:ill|extubat\w*)", "withdraw": r"\w* (?:of )?(?:care|support)"}
_PHRASES |= {"do not ": "(?:attempt )?(?:resuscitate|intubate)"}
TELLTALE = re.compile(rf"\b(?:{'|'.join(start + rest for start, rest in _PHRASES.items())})\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
BLOCK = 100  # notes that a process cleans at a time
_MARKED = re.compile(r"_{2,}|[\[\]*=#]{2,}|-{3,}")


def sections(text: str) -> list[tuple[str, str]]:
    """Pairs (lower-case heading, body) in order; text before the first heading has the heading ""."""
    found = []
    name, start = "", 0
    for match in _HEADING.finditer(text):
        found.append((name, text[start : match.start()]))
        name, start = match["name"].lower(), match.end()
    found.append((name, text[start:]))
    return [(n, body) for n, body in found if body.strip()]


def is_telltale(text: str) -> bool:
    """Whether a text has a `TELLTALE` phrase; most texts have no beginning of one, which is found much faster."""
    lower = text.lower()
    return (not lower.isascii() or any(start in lower for start in _PHRASES)) and bool(TELLTALE.search(text))


def clean(text: str, *, guard: bool, only: Collection[str] = (), removed: Counter[str] | None = None) -> str:
    """Convert a note to running text.

    Args:
        guard: remove the sections on discharge disposition and condition, and all sentences with a `TELLTALE` phrase,
            including those about others ("His father died at 60"), because the guard cannot tell whose death is meant.
        only: keep only these sections (empty: all except administrative ones).
        removed: counter of removed sections and sentences.
    """
    requested = {s.lower() for s in only}
    kept = []
    for name, body in sections(text.replace("\r\n", "\n").replace("\r", "\n")):
        if requested and name not in requested:
            continue
        if name in ADMINISTRATIVE and name not in requested:
            # Keep the lines that follow the administrative line.
            body = body.partition("\n")[2]
        if guard and name in TELLTALE_SECTIONS:
            if removed is not None:
                removed["sections on discharge disposition or death"] += 1
            continue
        if guard and is_telltale(body):
            sentences = _SENTENCE.split(body)
            remaining = [s for s in sentences if not is_telltale(s)]
            if removed is not None:
                removed["sentences about death, hospice or comfort care"] += len(sentences) - len(remaining)
            body = " ".join(remaining)
        kept.append(f"{name} {body}")
    return " ".join(_MARKED.sub(" ", " ".join(kept)).split())


def _clean_block(texts: Sequence[str], guard: bool, only: Collection[str]) -> tuple[list[str], Counter[str]]:
    removed: Counter[str] = Counter()
    return [clean(text, guard=guard, only=only, removed=removed) for text in texts], removed


def clean_all(
    texts: Sequence[str], threads: int, *, guard: bool, only: Collection[str] = (), removed: Counter[str]
) -> list[str]:
    """`clean` for many notes, in order, by up to `threads` processes, because `re` holds Python's lock."""
    from joblib import Parallel, delayed

    blocks = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
    # One block needs no process.
    parts = Parallel(max(1, min(threads, len(blocks))))(delayed(_clean_block)(b, guard, only) for b in blocks)
    removed.update(sum((counts for _, counts in parts), Counter()))
    return [text for block, _ in parts for text in block]


def pieces(text: str, n_words: int, limit: int) -> list[str]:
    """Split a text into chunks of `n_words` words; with a `limit`, keep that many, evenly spaced from first to last."""
    words = text.split()
    chunks = [" ".join(words[i : i + n_words]) for i in range(0, len(words), n_words)]
    if limit and len(chunks) > limit:
        chunks = [chunks[round(i * (len(chunks) - 1) / max(1, limit - 1))] for i in range(limit)]
    return chunks
