"""Encoders: published sizes, no effect of padding, keyed initial weights, weight files and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_retriever.config import Common
from moe_retriever.data.tables import GenotypeTable, ModalitySpec, PixelTable, SequenceTable
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import CNN3D, VGG11, ImageEncoder, Tokeniser, build_encoders
from moe_retriever.nn.init import build
from moe_retriever.nn.kernels.recurrent import last_state
from mrpipe.errors import DataError
from mrpipe.genetics.packing import unpack_range
from mrpipe.transforms.genotypes import GenotypeTransform
from tests.moe_retriever.synthetic import CPU

SHAPES = {"vector": (5,), "sequence": (3,), "image": (3, 9, 6), "volume": (5, 6, 4), "genotype": (10,)}


def common(**changes: object) -> Common:
    defaults = {"hidden": 8, "tokens": 3, "heads": 2, "encoder_hidden": 10, "cnn_width": 0.05, "image_outputs": 4}
    return Common(**{**defaults, **changes})  # type: ignore[arg-type]


def one(kind: str, **changes: object) -> nn.Module:
    spec = ModalitySpec(name="m", kind=kind, shape=SHAPES[kind])
    return build_encoders((spec,), common(**changes), 0, Noise(0))[0]


def sequences(lengths: list[int], seed: int = 0) -> SequenceTable:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    x = np.random.default_rng(seed).normal(size=(offsets[-1], 3)).astype(np.float32)
    return SequenceTable(x, offsets, CPU)


@pytest.mark.parametrize(("batch_norm", "size"), [(False, 132_863_336), (True, 132_868_840)])
def test_vgg11_has_the_parameters_and_names_of_torchvision(batch_norm: bool, size: int) -> None:
    with torch.device("meta"):
        net = VGG11(channels=3, n_outputs=1000, width=1.0, batch_norm=batch_norm, dropout=0.5, noise=Noise(0))
    assert sum(p.numel() for p in net.parameters()) == size
    names = {n.rsplit(".", 1)[0] for n, _ in net.named_parameters()}
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25] if batch_norm else [0, 3, 6, 8, 11, 13, 16, 18]
    assert {f"features.{i}" for i in convolutions} | {f"classifier.{i}" for i in (0, 3, 6)} <= names


def test_the_3d_cnn_has_the_authors_size_and_cost() -> None:
    """1.448 M parameters and 93.13 GFLOPs for one volume of 91 × 109 × 91 voxels."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = CNN3D((91, 109, 91), 128, 1.0)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 91, 109, 91))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.448e6, abs=500)
    assert counter.get_total_flops() == pytest.approx(93.13e9, rel=1e-3)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_last_state_does_not_depend_on_longer_sequences(kind: str) -> None:
    table = sequences([4, 1, 9, 2])
    encoder = one("sequence", sequence_encoder=kind)
    together = encoder(table.gather(np.array([2, 0, 1, 3])))
    for place, row in enumerate([2, 0, 1, 3]):
        steps = table.x[table.offsets[row] : table.offsets[row + 1]]
        last = encoder.rnn(steps.unsqueeze(1))[0][-1]
        torch.testing.assert_close(together[place], encoder.tokens(last)[0])


def test_packing_contains_every_step_once() -> None:
    table = sequences([4, 1, 9, 2, 4])
    rows = np.array([4, 2, 2, 1])
    packed = table.gather(rows)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    assert lengths.tolist() == [4, 9, 9, 1]
    for place, row in enumerate(rows):
        steps = table.x[table.offsets[row] : table.offsets[row + 1]]
        assert torch.equal(padded[place, : len(steps)], steps)


def test_pooled_sequences_have_mean_maximum_and_length() -> None:
    table = sequences([3, 1, 5])
    pooled = table.pooled(np.array([2, 0]))
    for place, row in enumerate([2, 0]):
        steps = table.x[table.offsets[row] : table.offsets[row + 1]]
        expected = torch.cat([steps.mean(0), steps.max(0).values, torch.tensor([float(np.log(len(steps)))])])
        torch.testing.assert_close(pooled[place], expected)


def test_genotypes_are_decoded_like_in_the_store_reader() -> None:
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (70, 3)).astype(np.uint8)
    kept = np.array([1, 2, 5, 9])
    mode = np.array([0, 1, 2, 1], dtype=np.uint8)
    calls = unpack_range(packed, 0, 10)[:, kept]
    rows = np.array([3, 60, 3])
    expected = np.where(calls == 3, mode, calls)[rows] - 1.0
    table = GenotypeTable(packed, GenotypeTransform(mode, kept), CPU)
    np.testing.assert_array_equal(table.gather(rows).values(), expected)
    np.testing.assert_array_equal(table.pooled(rows), expected)
    for width in (4, 5, 12):
        padded = np.pad(expected, ((0, 0), (0, width - 4)))
        np.testing.assert_array_equal(table.gather(rows).values(width), padded)


def test_pixels_are_stored_as_integers_and_standardised_per_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 5)).astype(np.uint8)
    mean, sd = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)
    table = PixelTable(pixels, mean, sd, CPU, per_channel=True)
    assert table.x.dtype == torch.uint8
    expected = (pixels[[2, 0]].astype(np.float32) - mean[:, None, None]) / sd[:, None, None]
    np.testing.assert_allclose(table.gather(np.array([2, 0])), expected, rtol=1e-6)


def test_chunks_share_one_linear_map_and_are_padded_with_zeros() -> None:
    t = build(lambda: Tokeniser(7, 3, 4), 0, "t")
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.zeros(2, 2)], dim=1)
    for p in range(3):
        torch.testing.assert_close(t(x)[:, p], t.linear(padded[:, 3 * p : 3 * p + 3]))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 9)])
def test_images_can_have_any_size(size: tuple[int, int]) -> None:
    encoder = one("image")
    assert encoder(torch.zeros(2, 3, *size)).shape == (2, 3, 8)


def test_encoders_have_keyed_initial_weights_and_do_not_use_the_global_generator() -> None:
    specs = tuple(ModalitySpec(name=k, kind=k, shape=s) for k, s in SHAPES.items())
    before = torch.get_rng_state()
    a = build_encoders(specs, common(), 0, Noise(0))
    assert torch.equal(torch.get_rng_state(), before)
    # The weights do not depend on the order and number of modalities.
    b = build_encoders(specs[::-1], common(), 0, Noise(0))
    for x, y in zip(a, reversed(b), strict=True):
        for p, q in zip(x.parameters(), y.parameters(), strict=True):
            assert torch.equal(p, q)
            assert torch.isfinite(p).all()
    weights = [next(e.parameters()).flatten()[:3] for e in a]
    assert len({tuple(w.tolist()) for w in weights}) == len(weights)


def test_a_parameter_without_initial_value_is_an_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.empty(3))

    with pytest.raises(TypeError, match=r"Odd\.gain has no initial value"):
        build(Odd, 0, "odd")


def test_dropout_uses_the_keyed_generator() -> None:
    from moe_retriever.nn.dropout import Dropout

    x = torch.ones(200, 100)
    for p in (0.5, 0.25, 0.3):
        noise = Noise(0)
        layer = Dropout(p, noise)
        y = layer(x)
        assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.02)
        assert y.mean().item() == pytest.approx(1, abs=0.03)
        noise.reset("start")
        assert torch.equal(layer(x), y)
        assert not torch.equal(layer(x), y)
        assert layer.eval()(x) is x


# Weight files.


def weights_of(encoder: ImageEncoder, n_outputs: int = 1000) -> dict[str, Tensor]:
    """A state dict like torchvision's, with the width of the encoder."""
    state = {k: torch.full_like(v, 0.01) for k, v in encoder.cnn.state_dict().items()}
    wide = state["classifier.6.weight"].shape[1]
    state["classifier.6.weight"], state["classifier.6.bias"] = torch.zeros(n_outputs, wide), torch.zeros(n_outputs)
    return state


def test_a_weight_file_sets_all_layers_except_a_last_layer_of_different_size(tmp_path: Path) -> None:
    plain = one("image")
    assert isinstance(plain, ImageEncoder)
    torch.save(weights_of(plain), tmp_path / "vgg.pth")
    loaded = one("image", image_weights=str(tmp_path / "vgg.pth"), image_freeze=True)
    state, before = loaded.cnn.state_dict(), plain.cnn.state_dict()
    assert all((v == 0.01).all() for k, v in state.items() if not k.startswith("classifier.6"))
    assert torch.equal(state["classifier.6.weight"], before["classifier.6.weight"])
    assert not any(p.requires_grad for p in loaded.cnn.features.parameters())
    assert all(p.requires_grad for p in loaded.cnn.classifier.parameters())
    assert not loaded.train().cnn.features.training


def test_an_error_about_a_weight_file_contains_the_layer(tmp_path: Path) -> None:
    plain = one("image")
    assert isinstance(plain, ImageEncoder)
    state = weights_of(plain)
    del state["features.3.bias"]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(DataError, match=r"features\.3\.bias"):
        one("image", image_weights=str(tmp_path / "vgg.pth"))


def bad_weight_file(path: Path, fault: str) -> None:
    plain = one("image", image_encoder="vgg11_bn" if fault == "batch norm" else "vgg11")
    assert isinstance(plain, ImageEncoder)
    state = weights_of(plain)
    content = {"a tensor": torch.zeros(3), "a checkpoint": {"epoch": 1, "state": state}, "a list": [1.0]}
    torch.save(content.get(fault, state), path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    if fault == "junk":
        path.write_bytes(b"junk")
    if fault == "absent":
        path.unlink()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("batch norm", "the layers of this VGG11; found .* layers. Use a state dict of torchvision's"),
        *((f, "a torch state dict") for f in ("truncated", "junk", "absent", "a tensor", "a checkpoint", "a list")),
    ],
)
def test_other_weight_files_are_refused(fault: str, said: str, tmp_path: Path) -> None:
    bad_weight_file(tmp_path / "vgg.pth", fault)
    with pytest.raises(DataError, match=f"vgg.pth.*{said}"):
        one("image", image_weights=str(tmp_path / "vgg.pth"))


@pytest.mark.parametrize("cls", [nn.GRU, nn.LSTM])
def test_explicit_gradients_equal_autograd(cls: type[nn.RNNBase]) -> None:
    """States and gradients of all weights and the input in float64, compared with torch's implementation."""
    generator = torch.Generator().manual_seed(0)
    rnn = build(lambda: cls(3, 5), 0, "rnn").double()
    packed = sequences([4, 1, 9, 2, 9]).gather(np.array([4, 0, 3, 2, 1, 3]))
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    found = []
    for own in (True, False):
        x = packed.data.double().requires_grad_()
        entry = nn.utils.rnn.PackedSequence(x, *packed[1:])
        last = rnn(entry)[1]
        state = last_state(rnn, entry) if own else (last[0] if isinstance(last, tuple) else last)[-1]
        found.append((state, *torch.autograd.grad((state * weight).sum(), [x, *rnn.parameters()])))
        with torch.no_grad():
            torch.testing.assert_close(last_state(rnn, entry), state)
    for own, autograd in zip(*found, strict=True):
        torch.testing.assert_close(own, autograd)
