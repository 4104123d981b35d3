"""MoE-Retriever and the methods it is compared with, trained from sealed feature stores alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_retriever.data.dataset import StoreDataset, StreamedStore

__all__ = ["StoreDataset", "StreamedStore"]


def __getattr__(name: str) -> Any:
    # Imported on first use, because the module imports torch.
    if name in __all__:
        import moe_retriever.data.dataset

        return getattr(moe_retriever.data.dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
