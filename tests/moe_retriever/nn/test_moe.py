"""Router, grouped dispatch and balance loss compared with their definitions (Eq. 1 and docs/method.md)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import build
from moe_retriever.nn.moe import Experts, Router, Routing, balance_loss, cv_squared

H, E, T = 8, 6, 40
ALLOWED = torch.tensor([[0, 1, 4, 5], [2, 3, 4, 5]])


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(T, H, generator=torch.Generator().manual_seed(seed))


def router(**options: object) -> Router:
    return build(lambda: Router(H, E, noise=Noise(0), **{"top_k": 2, **options}), 0, "router")  # type: ignore[arg-type]


def experts() -> Experts:
    return build(lambda: Experts(E, H, 10, 0.0, Noise(0)), 0, "experts")


def allowed_mask(group: Tensor) -> Tensor:
    return torch.zeros(2, E, dtype=torch.bool).scatter(1, ALLOWED, True)[group]


def test_weights_are_the_top_k_of_the_softmax_over_the_allowed_experts() -> None:
    """Eq. 1: softmax first, then top-k without renormalisation."""
    r, x, group = router(), tokens(), torch.arange(T) % 2
    out = r(x, allowed_mask(group))
    for t in range(T):
        mine = ALLOWED[group[t]]
        p = (r.weight[mine] @ x[t]).softmax(0)
        best = p.sort(descending=True)
        torch.testing.assert_close(out.weight[t], best.values[:2])
        assert out.expert[t].tolist() == mine[best.indices[:2]].tolist()
    assert (out.weight.sum(1) < 1).all()


def test_renormalised_weights_equal_a_softmax_over_the_top_k_logits() -> None:
    r, x = router(renormalise=True), tokens()
    out = r(x)
    logits = (x @ r.weight.T).topk(2, dim=1)
    assert (out.expert == logits.indices).all()
    torch.testing.assert_close(out.weight, logits.values.softmax(1))


def test_each_of_several_routers_processes_its_own_tokens() -> None:
    r, x = router(n_routers=3), tokens()
    which = torch.arange(T) % 3
    out = r(x, None, which)
    for k in range(3):
        mine = which == k
        expected = (x[mine] @ r.weight.view(3, E, H)[k].T).softmax(1).topk(2, dim=1)
        torch.testing.assert_close(out.weight[mine], expected.values)


def test_gate_noise_is_used_only_in_training_and_is_keyed() -> None:
    r, x = router(noisy=True), tokens()
    r.eval()
    assert torch.equal(r(x).weight, r(x).weight)
    r.train()
    noisy = r(x)
    assert noisy.noisy is not None
    assert not torch.equal(noisy.weight, r(x).weight)
    r._noise.reset("again")
    first = r(x).weight
    r._noise.reset("again")
    assert torch.equal(r(x).weight, first)


def dense(e: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Σ_e R(x)_e E_e(x) in float64, with loops over tokens and experts."""
    rows = []
    for t in range(len(x)):
        total = torch.zeros(H, dtype=torch.float64)
        for k, weight in zip(routing.expert[t].tolist(), routing.weight[t].double(), strict=True):
            inner = F.gelu(x[t].double() @ e.w_in[k].double() + e.b_in[k].double())
            total = total + weight * (inner @ e.w_out[k].double() + e.b_out[k].double())
        rows.append(total)
    return torch.stack(rows)


def test_grouped_dispatch_equals_a_loop_in_values_and_gradients() -> None:
    r, e, x = router(), experts(), tokens().requires_grad_()
    target = torch.randn(T, H, generator=torch.Generator().manual_seed(9))
    names = dict(e.named_parameters()) | {"router": r.weight, "x": x}

    def gradients(f: object) -> tuple[Tensor, dict[str, Tensor]]:
        out = f(e, x, r(x))  # type: ignore[operator]
        grads = torch.autograd.grad((out * target).sum(), list(names.values()))
        return out.detach(), dict(zip(names, grads, strict=True))

    value, grads = gradients(lambda m, x, routing: m(x, routing))
    wanted, wanted_grads = gradients(dense)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    for name in names:
        torch.testing.assert_close(grads[name].double(), wanted_grads[name].double(), rtol=1e-4, atol=1e-5)


def test_dropout_masks_have_one_row_per_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyed masks of a run must not depend on the processor or on the number of visits of an expert."""
    e, rows = experts(), []
    monkeypatch.setattr(e.dropout, "bits", lambda shape, device: rows.append(shape[0]) or (None, 1.0))
    for n in (7, 192 * E):
        expert = (torch.arange(n) == 0).long()[:, None]
        e(torch.ones(n, H), Routing(expert, torch.ones(n, 1), torch.zeros(n, E)))
    assert rows == [7, 192 * E]


def test_initial_weights_are_uniform_within_one_over_the_root_of_the_inputs() -> None:
    e, r = experts(), router(noisy=True)
    for p, n_inputs in ((e.w_in, H), (e.b_in, H), (e.w_out, 10), (e.b_out, 10), (r.weight, H)):
        assert 0.9 / math.sqrt(n_inputs) < float(p.detach().abs().max()) <= 1 / math.sqrt(n_inputs)
    assert (r.noise_weight == 0).all()


def test_masked_experts_have_zero_weight_and_gradient() -> None:
    r, e, x = router(), experts(), tokens()
    out = r(x, allowed_mask(torch.zeros(T, dtype=torch.long)))
    assert set(out.expert.flatten().tolist()) <= set(ALLOWED[0].tolist())
    e(x, out).pow(2).sum().backward()
    for p in (r.weight, e.w_in, e.b_in, e.w_out, e.b_out):
        assert p.grad is not None
        assert (p.grad[[2, 3]] == 0).all()
        assert (p.grad[ALLOWED[0]] != 0).any()


def test_an_expert_without_tokens_is_not_an_error() -> None:
    e, x = experts(), tokens()[:3]
    routing = Routing(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), torch.zeros(3, E))
    expected = F.gelu(x @ e.w_in[0] + e.b_in[0]) @ e.w_out[0] + e.b_out[0]
    torch.testing.assert_close(e(x, routing), expected)


def test_balance_loss_equals_its_formula_per_target_over_allowed_experts() -> None:
    """CV² of importance plus CV² of load over the four allowed experts of each target, averaged over targets."""
    r, x, group = router(), tokens(), (torch.arange(T) >= 25).long()
    out = r(x, allowed_mask(group))
    expected = []
    for g in range(2):
        importance, load = [], []
        for expert in ALLOWED[g].tolist():
            chosen = (out.expert == expert) & (group == g)[:, None]
            importance.append(out.weight[chosen].sum().item())
            load.append(float(chosen.sum()))
        parts = [torch.tensor(v, dtype=torch.float64) for v in (importance, load)]
        expected.append(sum(float(v.var() / v.mean() ** 2) for v in parts))
    found = balance_loss(out, group, ALLOWED)
    assert float(found.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)
    # Targets without tokens are not included in the average.
    only = out.expert[:25], out.weight[:25], out.clean[:25]
    assert float(balance_loss(Routing(*only), group[:25], ALLOWED).detach()) == pytest.approx(expected[0], rel=1e-5)


def test_balance_loss_is_zero_for_an_even_load_and_has_a_gradient_for_the_router() -> None:
    routing = Routing(torch.tensor([[0, 1], [4, 5]]), torch.full((2, 2), 0.5), torch.zeros(2, E))
    assert float(balance_loss(routing, torch.zeros(2, dtype=torch.long), ALLOWED)) == 0
    r, x = router(), tokens()
    balance_loss(r(x), torch.zeros(T, dtype=torch.long), torch.arange(E)[None]).backward()
    assert r.weight.grad is not None
    assert r.weight.grad.abs().sum() > 0


def test_the_load_with_noise_is_the_selection_probability() -> None:
    """Shazeer et al. 2017, appendix A, compared with a simulation of the noise over the allowed experts."""
    r = router(noisy=True)
    with torch.no_grad():
        r.noise_weight += 0.3 * torch.randn(E, H, generator=torch.Generator().manual_seed(1))
    r.train()
    x = tokens()[:1].repeat(4000, 1)
    group = torch.zeros(4000, dtype=torch.long)
    from moe_retriever.nn.moe import _load

    out = r(x, allowed_mask(group))
    load = _load(out).mean(0)
    chosen = torch.zeros(4000, E).scatter(1, out.expert, 1.0).mean(0)
    torch.testing.assert_close(load, chosen, rtol=0, atol=0.03)
    assert (load[[2, 3]] == 0).all()


def test_coefficient_of_variation() -> None:
    x = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    torch.testing.assert_close(cv_squared(x), torch.tensor([2.0 / 4.0, 0.0]))
    assert float(cv_squared(torch.tensor([5.0]))) == 0
    assert math.isfinite(float(cv_squared(torch.zeros(3))))
    assert float(cv_squared(torch.tensor([0.0, 2e-5], dtype=torch.float64))) == pytest.approx(1.0)


@pytest.mark.parametrize(("affinity", "power"), [("laplace", 1), ("gaussian", 2)])
def test_distance_based_logits(affinity: str, power: int) -> None:
    r, x = router(affinity=affinity), tokens()
    expected = torch.stack([-((r.weight.double() - t).norm(dim=1) ** power) for t in x.double()])
    torch.testing.assert_close(r(x).clean.double(), expected, rtol=1e-5, atol=1e-5)
    # A token at the position of an expert has the largest logit for it and a finite gradient.
    on = r.weight.detach()[:1].clone().requires_grad_()
    out = r(on)
    assert int(out.expert[0, 0]) == 0
    out.weight[0, 0].backward()
    assert on.grad is not None
    assert on.grad.isfinite().all()


@pytest.mark.parametrize("noisy", [False, True])
def test_routings_can_be_split_and_concatenated(noisy: bool) -> None:
    r, x = router(noisy=noisy), tokens()
    whole = r(x)
    joined = Routing.concatenate([whole.rows(torch.arange(15)), whole.rows(torch.arange(15, T))])
    for name in ("expert", "weight", "clean", "noisy", "spread"):
        found, expected = getattr(joined, name), getattr(whole, name)
        assert (found is None) == (expected is None) == (not noisy and name in ("noisy", "spread"))
        assert expected is None or torch.equal(found, expected)
