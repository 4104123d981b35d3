"""Registry of text encoders; nothing here imports torch or downloads anything.

encoder = get_encoder("minilm")
encoder.sentences(["it was great"])            # (1, 384) float32, unit norm
values, offsets = encoder.words([["it", "was", "great"]])   # (3, 384) float32, [0, 3]
"""

import re
from collections.abc import Sequence

from mrpipe.errors import MissingExtraError, UsageError, did_you_mean
from mrpipe.options import parse_assignments, parse_options
from mrpipe.plugins import entry_points
from mrpipe.text import used_encoder
from mrpipe.text.base import Encoder
from mrpipe.text.cache import CachedEncoder
from mrpipe.text.hashing import HashingEncoder, hashed_counts, tokenise
from mrpipe.text.precomputed import PREFIX, Precomputed

__all__ = ["HELP", "PREFIX", "Encoder", "Precomputed", "get_encoder", "hashed_counts", "recorded", "tokenise"]

HELP = (
    "hashing or hashing-<dim>: hashed character n-grams, needs no model; minilm: all-MiniLM-L6-v2, needs the extra "
    "'text'; hf:FOLDER: a local Hugging Face or sentence-transformers model, needs the extra 'hf', with options as in "
    "hf:FOLDER?pooling=cls&length=128&batch=8&device=cuda; precomputed:FILE: vectors from a Parquet file with the "
    "columns id and vector; or an encoder of another package (docs/text.md)"
)


def get_encoder(name: str, others: Sequence[str] = ()) -> Encoder:
    """The encoder `name`; packages and files are checked, weights are loaded when the first text is encoded.

    Args:
        name: `auto` (the best that is installed), or as described in `HELP`; an entry point of the group
            `mrpipe.encoders` is called with the text after the colon, if any, and with the options as keywords.
        others: further values of the option that contains the name, for the hint of the error.

    Raises:
        UsageError: no such encoder or option.
        MissingExtraError: its packages are not installed.
        DataError: files of a model folder are absent or damaged.
    """
    place, _, query = name.partition("?")
    kind, colon, argument = place.partition(":")
    settings = parse_assignments(query.split("&") if query else None, name)
    if match := re.fullmatch(r"hashing(?:-([1-9][0-9]{0,4}))?", name):
        return HashingEncoder(int(match[1] or 300))
    if name in ("auto", "minilm"):
        from mrpipe.text.minilm import MiniLM

        try:
            return CachedEncoder(MiniLM())
        except MissingExtraError:
            if name == "minilm":
                raise
            return HashingEncoder()
    if kind == "hf" and argument:
        from mrpipe.text.huggingface import HuggingFace, HuggingFaceOptions

        return CachedEncoder(HuggingFace(argument, parse_options(HuggingFaceOptions, settings, context=name)))
    plugins = entry_points("mrpipe.encoders")
    if kind not in plugins:
        known = (*others, "hashing", "hashing-<dim>", "minilm", "hf:FOLDER", f"{PREFIX}FILE", *plugins)
        raise UsageError(f"unknown text encoder {name!r}. {did_you_mean(name, known)}")
    return CachedEncoder(plugins[kind].load()(*[argument] * bool(colon), **settings))


def recorded(name: str, others: Sequence[str] = ()) -> tuple[str, str]:
    """Check an encoder or a file of vectors: the value for the manifest, without paths, and a note for the user.

    Raises:
        UsageError, MissingExtraError, DataError: as `get_encoder` and `Precomputed`.
    """
    chosen = Precomputed(name).name if name.startswith(PREFIX) else get_encoder(name, others).name
    if name == "auto":
        name = "hashing" if chosen.startswith("hashing") else "minilm"
    return chosen if ":" in name else name, used_encoder(chosen)
