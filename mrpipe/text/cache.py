"""Vectors of texts that were encoded before, so that a rebuild encodes only new texts."""

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from mrpipe.locks import cache_folder
from mrpipe.text.base import Encoder, Floats, Offsets, flatten

_LOG = logging.getLogger(__name__)
BLOCK = 4096  # texts whose vectors are looked up and written at once; an interrupted job loses no more


class CachedEncoder:
    """An encoder that encodes each text once; its results are the same bytes with and without the cache.

    The vectors are in one SQLite file per encoder, by a hash of the text; several jobs may use it at once. A cache that
    cannot be used is reported and ignored.
    """

    def __init__(self, encoder: Encoder):
        self._encoder, self.name, self.dim = encoder, encoder.name, encoder.dim
        self._folder = cache_folder()

    def sentences(self, texts: Sequence[str]) -> Floats:
        rows = self._vectors(texts, lambda new: list(self._encoder.sentences(new)))
        return np.stack(rows) if rows else self._encoder.sentences([])

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        def encode(new: list[list[str]]) -> list[Floats]:
            values, offsets = self._encoder.words(new)
            return np.split(values, offsets[1:-1])

        texts = [list(t) for t in tokens if t]
        rows = [x.reshape(len(t), -1) for x, t in zip(self._vectors(texts, encode), texts, strict=True)]
        return (np.concatenate(rows), flatten(tokens)[1]) if rows else self._encoder.words(tokens)

    def _vectors(self, texts: Sequence[Any], encode: Callable[[list[Any]], list[Floats]]) -> list[Floats]:
        """Vectors of each text or list of words; those from the cache are flat."""
        keys = [hashlib.blake2b(json.dumps([self.name, t]).encode(), digest_size=16).digest() for t in texts]
        known, text_of = dict[bytes, Floats](), dict(zip(keys, texts, strict=True))
        for start in range(0, len(text_of), BLOCK):
            block = list(text_of)[start : start + BLOCK]
            query = f"SELECT key, x FROM vectors WHERE key IN ({','.join('?' * len(block))})"
            known |= {key: np.frombuffer(x, "<f4") for key, x in self._execute(query, block)}
            if new := [key for key in block if key not in known]:
                known |= dict(zip(new, encode([text_of[key] for key in new]), strict=True))
                rows = [(key, known[key].astype("<f4").tobytes()) for key in new]
                self._execute("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows, many=True)
        return [known[key] for key in keys]

    def _execute(self, statement: str, values: Sequence[Any], *, many: bool = False) -> list[Any]:
        """Rows that a statement returns; none without a cache."""
        if self._folder is None:
            return []
        path = self._folder / "text" / (re.sub(r"[^\w.-]+", "-", self.name) + ".sqlite")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # vectors can reveal their texts
            with closing(sqlite3.connect(path, timeout=60)) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, x BLOB) WITHOUT ROWID")
                return (file.executemany if many else file.execute)(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("the text cache %s is not used: %s", path, error)
            self._folder = None
            return []
