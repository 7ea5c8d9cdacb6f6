"""Both rules against an independent truth: autograd in float64 for AdamDTO, the simplex itself for MirrorDTO."""

import math

import pytest
import torch
from torch import Tensor

from nabla_agents import AdamDTO, ConfigurationError, MirrorDTO


def rows(n: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random logits and gradient rows in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, n, vocab, dtype=torch.float64, generator=generator)
    return draw[0] * scale, draw[1]


def adam_by_autograd(rule: AdamDTO, logits: Tensor, gradient: Tensor) -> Tensor:
    """One row in a plain float64 loop: torch's AdamW and autograd on -<g, softmax(z / τ)>, the cosine by its formula.

    With `stop_on_flip` the loop ends after the step that changes the argmax.
    """
    z = logits.double().clone().requires_grad_()
    first = int(z.argmax())
    optimizer = torch.optim.AdamW([z], lr=1.0, weight_decay=rule.weight_decay)
    for step in range(rule.steps):
        cosine = (1 + math.cos(math.pi * step / rule.steps)) / 2
        optimizer.param_groups[0]["lr"] = (
            rule.final_learning_rate + (rule.learning_rate - rule.final_learning_rate) * cosine
        )
        optimizer.zero_grad()
        loss = -(gradient.double() * torch.softmax(z / rule.temperature, -1)).sum()
        loss.backward()
        optimizer.step()
        if rule.stop_on_flip and int(z.argmax()) != first:
            break
    return z.detach()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of probabilities in nats, with 0 log 0 = 0."""
    return torch.special.xlogy(p, p).sum(-1) - torch.special.xlogy(p, q).sum(-1)


def simplex_grid(steps: int) -> Tensor:
    """Every distribution over three tokens with probabilities that are multiples of 1/steps."""
    i = torch.arange(steps + 1, dtype=torch.float64)
    a, b = torch.meshgrid(i, i, indexing="ij")
    inside = a + b <= steps
    return torch.stack([a[inside], b[inside], steps - a[inside] - b[inside]], -1) / steps


@pytest.mark.parametrize(
    "rule",
    [
        AdamDTO(stop_on_flip=False),
        AdamDTO(stop_on_flip=False, steps=1),
        AdamDTO(stop_on_flip=False, steps=50, learning_rate=0.1, final_learning_rate=0.0),
        AdamDTO(stop_on_flip=False, temperature=0.5),
        AdamDTO(stop_on_flip=False, temperature=2.0, weight_decay=0.1),
        AdamDTO(steps=60, learning_rate=0.3),
    ],
    ids=repr,
)
def test_adam_equals_autograd_and_adamw_in_float64(rule: AdamDTO) -> None:
    logits, gradient = rows(5, 12)
    expected = torch.stack([adam_by_autograd(rule, z, g) for z, g in zip(logits, gradient, strict=True)])
    assert (expected - logits).abs().amax(-1).min() > 1e-3  # every row moves
    torch.testing.assert_close(rule.refine(logits, gradient), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        rule.refine(logits.float(), gradient.float()), expected.float(), rtol=0, atol=2e-4 * rule.steps
    )


def test_adam_stops_a_row_where_its_argmax_flips_and_no_other_row() -> None:
    """The first row is pushed to its second token, which is close; the second row is far from any flip."""
    logits = torch.tensor([[1.0, 0.9, -2.0], [5.0, 0.0, -5.0]], dtype=torch.float64)
    gradient = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    stopping, going_on = (
        AdamDTO(steps=40, learning_rate=0.05),
        AdamDTO(steps=40, learning_rate=0.05, stop_on_flip=False),
    )
    stopped, full = stopping.refine(logits, gradient), going_on.refine(logits, gradient)
    assert stopped[0].argmax() == full[0].argmax() == 1
    margin, further = float(stopped[0, 1] - stopped[0, 0]), float(full[0, 1] - full[0, 0])
    assert 0 < margin <= 2 * 0.05 < further  # one step of Adam moves each logit by at most its learning rate
    torch.testing.assert_close(stopped[1], full[1], rtol=0, atol=0)


def test_half_precision_logits_move_by_the_same_kl_as_in_float64() -> None:
    """A bf16 logit of magnitude 4 or more is a multiple of 1/32: a step of 0.01 on it rounds away entirely."""
    logits, gradient = rows(4, 30, seed=3)
    half = (logits + 8 * logits.sign()).bfloat16()  # magnitudes of 8 to 17, as trained models have them
    rule = AdamDTO(stop_on_flip=False)

    stuck = half.clone().requires_grad_()
    optimizer = torch.optim.AdamW([stuck], lr=rule.learning_rate, weight_decay=0.0)
    for _ in range(rule.steps):
        optimizer.zero_grad()
        (-(gradient.bfloat16() * stuck.softmax(-1)).sum()).backward()
        optimizer.step()
    assert torch.equal(stuck.detach(), half)  # the trap

    refined = rule.refine(half, gradient.bfloat16())
    assert refined.dtype == torch.float32
    exact = torch.stack([adam_by_autograd(rule, z, g) for z, g in zip(half, gradient.bfloat16(), strict=True)])
    before = half.double().softmax(-1)
    moved, expected = kl(refined.double().softmax(-1), before), kl(exact.softmax(-1), before)
    assert (moved > 1e-6).all()
    torch.testing.assert_close(moved, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("rule", [AdamDTO(), MirrorDTO(), MirrorDTO(kl_budget=0.01)], ids=repr)
def test_refining_changes_neither_its_inputs_nor_the_graph(rule: AdamDTO | MirrorDTO) -> None:
    logits, gradient = (x.float() for x in rows(2, 5))
    kept = logits.clone(), gradient.clone()
    with torch.no_grad():
        first = rule.refine(logits, gradient)
    second = rule.refine(logits.clone().requires_grad_(), gradient).detach()
    assert torch.equal(logits, kept[0])
    assert torch.equal(gradient, kept[1])
    assert torch.equal(first, second)
    assert not rule.refine(logits, gradient).requires_grad


@pytest.mark.parametrize(
    "rule", [AdamDTO(), AdamDTO(stop_on_flip=False), MirrorDTO(), MirrorDTO(beta=30.0, kl_budget=0.1)], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_refined_independently(rule: AdamDTO | MirrorDTO, dtype: torch.dtype) -> None:
    logits, gradient = (x.to(dtype) for x in rows(4, 7, seed=1))
    together = rule.refine(logits, gradient)
    alone = torch.cat([rule.refine(z[None], g[None]) for z, g in zip(logits, gradient, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [AdamDTO(stop_on_flip=False), MirrorDTO(), MirrorDTO(beta=30.0, kl_budget=0.1)],
    ids=repr,
)
def test_masked_tokens_stay_masked_and_do_not_touch_the_others(rule: AdamDTO | MirrorDTO) -> None:
    """The objective's gradient is -inf where log π is; the others go as if the masked tokens were not there."""
    logits, gradient = rows(3, 6)
    masked = torch.tensor([False, True, False, False, True, False])
    expected = rule.refine(logits[:, ~masked], gradient[:, ~masked])
    hidden = torch.where(masked, -torch.inf, logits)
    for at_masked in (-torch.inf, 0.0, 100.0):
        refined = rule.refine(hidden, torch.where(masked, at_masked, gradient))
        assert (refined[:, masked] == -torch.inf).all()
        torch.testing.assert_close(refined[:, ~masked].softmax(-1), expected.softmax(-1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_mirror_is_the_best_distribution_on_a_grid_of_the_simplex(beta: float) -> None:
    """<g, p> - KL(p ‖ π) / β at the closed form beats all 80 601 grid points, and the best of them lies next to it."""
    logits, gradient = rows(4, 3, seed=2, scale=1.0)
    grid = simplex_grid(400)
    for z, g, refined in zip(logits, gradient, MirrorDTO(beta=beta).refine(logits, gradient), strict=True):
        prior, found = z.softmax(-1), refined.softmax(-1)
        values = grid @ g - kl(grid, prior) / beta
        assert float(found @ g - kl(found, prior) / beta) >= float(values.max()) - 1e-12
        assert (grid[values.argmax()] - found).abs().max() < 2 / 400


def test_mirror_equals_a_numeric_maximiser_in_many_dimensions() -> None:
    logits, gradient = rows(3, 20, seed=5, scale=1.0)
    beta = 1.7
    prior = logits.softmax(-1)
    theta = torch.zeros_like(logits).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        p = theta.softmax(-1)
        value = -((p * gradient).sum(-1) - kl(p, prior) / beta).sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = MirrorDTO(beta=beta).refine(logits, gradient).softmax(-1)
    torch.testing.assert_close(found, theta.detach().softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("budget", [1e-3, 0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_budget_is_kept_and_used_up(budget: float, dtype: torch.dtype) -> None:
    """Where the free optimum breaks the budget, the whole budget is used; where it keeps it, nothing changes."""
    logits, gradient = rows(40, 10, seed=7)
    gradient[::4] *= 1e-3  # rows that keep any budget
    free = MirrorDTO(beta=2.0)
    bound = free.replace(kl_budget=budget)
    prior = logits.softmax(-1)
    before = kl(free.refine(logits, gradient).softmax(-1), prior)
    after = kl(bound.refine(logits.to(dtype), gradient.to(dtype)).double().softmax(-1), prior)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    assert (after <= budget * (1 + 1e-3) + tolerance).all()
    fits = before <= budget
    assert 10 <= int(fits.sum()) < 40
    torch.testing.assert_close(after[fits], before[fits], rtol=1e-3, atol=tolerance)
    torch.testing.assert_close(after[~fits], torch.full_like(after[~fits], budget), rtol=1e-3, atol=tolerance)


def test_no_distribution_within_the_kl_budget_has_more_ranking_score() -> None:
    logits, gradient = rows(4, 3, seed=11, scale=1.0)
    budget, grid = 0.1, simplex_grid(400)
    refined = MirrorDTO(beta=1000.0, kl_budget=budget).refine(logits, gradient)
    for z, g, row in zip(logits, gradient, refined, strict=True):
        within = grid[kl(grid, z.softmax(-1)) <= budget]
        best = float((within @ g).max())
        found = float(row.softmax(-1) @ g)
        assert best - 1e-6 <= found <= best + 0.02 * float(g.abs().max())


@pytest.mark.parametrize("beta", [1e2, 1e6, 1e9])
def test_the_kl_budget_alone_decides_where_beta_is_huge(beta: float) -> None:
    logits, gradient = (x.float() for x in rows(8, 10, seed=13))
    refined = MirrorDTO(beta=beta, kl_budget=0.2).refine(logits, gradient)
    used = kl(refined.double().softmax(-1), logits.double().softmax(-1))
    torch.testing.assert_close(used, torch.full_like(used, 0.2), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"learning_rate": 0.0}, {"temperature": 0.0}, {"weight_decay": -1.0}, {"beta": 1.0}],
    ids=repr,
)
def test_settings_of_adam_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        AdamDTO(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"kl_budget": 0.0}, {"steps": 3}], ids=repr)
def test_settings_of_mirror_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        MirrorDTO(**settings)
