"""From raw clinical and multimodal exports to sealed Parquet feature stores with modality-availability bitmasks."""

from mrpipe.store import Arrays, Store, open_store

__all__ = ["Arrays", "Store", "open_store"]
