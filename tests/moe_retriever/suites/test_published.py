"""Published values of the paper's tables."""

from __future__ import annotations

from moe_retriever.suites.published import Published, published_rows


def test_published_values_are_found_for_their_view_only() -> None:
    mask = {"p": 0.3, "mechanism": "mcar"}
    for view in (["text", "audio"], ["audio", "text"]):
        assert published_rows("mosi", view, mask)["MoE-Retriever"] == {"accuracy": Published(66.13, 0.69)}
    assert set(published_rows("adni", ["image", "genomic"], None)["mmFormer"]) == {"accuracy", "macro_f1"}
    assert published_rows("mosi", ["text"], mask) == {}
    assert published_rows("mosi", ["text", "audio"], None) == {}
    assert published_rows("mosi", ["text", "audio"], mask | {"mechanism": "block"}) == {}
    assert published_rows("toy", ["table"], None) == {}
