"""Clean clinical notes: sections, de-identification blanks, and text that reveals the outcome."""

import re
from collections import Counter
from collections.abc import Collection

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
# Phrases of the leak guard, for notes and for titles of ICD codes.
TELLTALE = re.compile(
    r"\b(?:expired|deceased|died|dies|death|passed away|pronounced|time of death|autopsy|hospice|cmo|"
    r"comfort[- ](?:care|measures|focused)|made comfortable|palliative|terminal(?:ly)? (?:ill|extubat\w*)|"
    r"withdraw\w* (?:of )?(?:care|support)|"
    r"end[- ]of[- ]life|goals of care|morgue|organ bank|dnr|dni|do not (?:attempt )?(?:resuscitate|intubate))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_BLANKS = re.compile(r"_{2,}")
_SPACE = re.compile(r"\s+")
_MARKED = re.compile(r"[\[\]*=#]{2,}|-{3,}")


def sections(text: str) -> list[tuple[str, str]]:
    """Pairs (lower-case heading, body) in order; text before the first heading has the heading ""."""
    found = []
    name, start = "", 0
    for match in _HEADING.finditer(text):
        found.append((name, text[start : match.start()]))
        name, start = match["name"].lower(), match.end()
    found.append((name, text[start:]))
    return [(n, body) for n, body in found if body.strip()]


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
        sentences = _SENTENCE.split(body)
        if guard:
            remaining = [s for s in sentences if not TELLTALE.search(s)]
            if removed is not None:
                removed["sentences about death, hospice or comfort care"] += len(sentences) - len(remaining)
            sentences = remaining
        kept.append(f"{name} {' '.join(sentences)}")
    text = _MARKED.sub(" ", _BLANKS.sub(" ", " ".join(kept)))
    return _SPACE.sub(" ", text).strip()


def pieces(text: str, n_words: int, limit: int) -> list[str]:
    """Split a text into chunks of `n_words` words; with a `limit`, keep that many, evenly spaced from first to last."""
    words = text.split()
    chunks = [" ".join(words[i : i + n_words]) for i in range(0, len(words), n_words)]
    if limit and len(chunks) > limit:
        chunks = [chunks[round(i * (len(chunks) - 1) / max(1, limit - 1))] for i in range(limit)]
    return chunks
