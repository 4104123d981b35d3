"""MoE-Retriever and the methods it is compared with, trained from sealed feature stores alone."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_retriever.data.dataset import StoreDataset, StreamedStore

__all__ = ["StoreDataset", "StreamedStore"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # as a library, print nothing unless asked to


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import moe_retriever.data.dataset as loaded  # on first use, because it imports torch

    return getattr(loaded, name)
