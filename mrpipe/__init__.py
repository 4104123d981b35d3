"""Convert raw clinical and multimodal exports to sealed Parquet feature stores with modality-availability bitmasks."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpipe.store.reader import Arrays, Store, open_store

__all__ = ["Arrays", "Store", "open_store"]
__version__ = "0.2.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # as a library, print nothing unless asked to


def __getattr__(name: str) -> Any:
    # Imported on first use: the reader imports polars, which `mrpipe --help` and `mrpipe --version` do not need.
    if name in __all__:
        import mrpipe.store.reader

        return getattr(mrpipe.store.reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
