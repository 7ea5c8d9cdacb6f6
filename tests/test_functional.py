"""Tensor maths against torch.distributions, transformers' own filters, autograd and sums by hand."""

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nabla_agents import Sampling
from nabla_agents.functional import (
    choose_tokens,
    entropy,
    filtered_logits,
    kl_divergence,
    projected,
    token_log_probs,
    wide,
)

BIG = 1 - 2**-24  # the largest number below 1 that torch.rand can give


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) * 3


def support(filtered: torch.Tensor) -> list[list[int]]:
    return [[v for v, x in enumerate(row) if x > -math.inf] for row in filtered.tolist()]


def test_entropy_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert torch.allclose(entropy(logits).double(), expected, atol=1e-5)


def test_entropy_of_a_row_with_masked_tokens_is_finite() -> None:
    """Two of four tokens at equal odds: log 2. One alone: 0. A NaN here would switch position selection off."""
    inf = math.inf
    rows = torch.tensor([[1.0, -inf, 1.0, -inf], [-inf, 5.0, -inf, -inf]])
    assert entropy(rows).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)


def test_entropy_of_uniform_half_precision_rows_is_log_n() -> None:
    assert entropy(torch.zeros(1, 1000, dtype=torch.bfloat16)).item() == pytest.approx(math.log(1000), rel=1e-6)


def test_kl_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in (logits[:20], logits[20:]))
    expected = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(kl_divergence(logits[:20], logits[20:]).double(), expected, rtol=1e-5)


def test_kl_counts_nothing_for_a_token_masked_in_both_and_is_infinite_for_one_masked_in_the_reference() -> None:
    """KL((1, 0) ‖ (½, ½)) = log 2; the third token is masked in both. Mass where the reference has none is infinite."""
    inf = math.inf
    p = torch.tensor([[0.0, -inf, -inf], [0.0, 0.0, -inf]])
    q = torch.tensor([[0.0, 0.0, -inf], [0.0, -inf, -inf]])
    assert kl_divergence(p, q).tolist() == pytest.approx([math.log(2), inf])


def test_half_precision_is_computed_in_single() -> None:
    """A step of 0.01 on a logit of 8 is lost in bf16, and so would its KL be."""
    row = torch.tensor([[8.0, 8.0]], dtype=torch.bfloat16)
    moved = wide(row) + torch.tensor([[0.01, 0.0]])
    assert entropy(row).dtype == kl_divergence(row, row).dtype == torch.float32
    assert token_log_probs(row, torch.tensor([0])).dtype == projected(row, wide(row)).dtype == torch.float32
    # For two tokens at equal odds, moving one logit by δ gives KL = δ²/8 to second order.
    assert kl_divergence(moved, row).item() == pytest.approx(0.01**2 / 8, rel=0.01)


def test_double_precision_stays_double() -> None:
    row = torch.zeros(1, 3, dtype=torch.float64)
    assert {wide(row).dtype, entropy(row).dtype, token_log_probs(row, torch.tensor([0])).dtype} == {torch.float64}


def test_projected_gradient_is_that_of_autograd(logits: torch.Tensor) -> None:
    g = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad((g * z.softmax(-1)).sum(), z)
    assert torch.allclose(projected(logits.double(), g), expected, atol=1e-12)


def test_token_log_probs_are_gathered_log_softmax(logits: torch.Tensor) -> None:
    tokens = torch.arange(40)
    expected = logits.double().log_softmax(-1)[torch.arange(40), tokens]
    assert torch.allclose(token_log_probs(logits, tokens).double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value", "warper"),
    [
        *[("top_k", k, TopKLogitsWarper(k)) for k in (1, 7, 50)],
        *[("top_p", p, TopPLogitsWarper(p)) for p in (0.01, 0.3, 0.9, 0.999)],
        *[("min_p", p, MinPLogitsWarper(p)) for p in (0.001, 0.05, 0.5, 1.0)],
    ],
)
def test_a_filter_keeps_the_tokens_that_transformers_keeps(logits: torch.Tensor, setting, value, warper) -> None:
    kept = support(filtered_logits(logits, Sampling(**{setting: value})))
    assert kept == support(warper(None, logits.clone()))
    assert all(row.argmax().item() in tokens for row, tokens in zip(logits, kept, strict=True))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_filters_apply_in_the_order_of_transformers(logits: torch.Tensor, temperature: float) -> None:
    expected = logits / temperature
    for warper in (TopKLogitsWarper(12), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)):
        expected = warper(None, expected)
    got = filtered_logits(logits, Sampling(temperature=temperature, top_k=12, top_p=0.8, min_p=0.1))
    assert torch.allclose(got.softmax(-1), expected.softmax(-1), atol=1e-6)
    assert support(got) == support(expected)


@pytest.mark.parametrize("off", [Sampling(), Sampling(temperature=1.0, top_k=10_000, top_p=1.0, min_p=0.0)])
def test_a_filter_that_is_none_or_lets_everything_pass_changes_nothing(logits: torch.Tensor, off: Sampling) -> None:
    assert torch.allclose(filtered_logits(logits, off).softmax(-1), logits.softmax(-1), atol=1e-7)


def test_temperature_0_is_greedy_whatever_the_random_number(logits: torch.Tensor) -> None:
    for uniform in (0.0, 0.5, BIG):
        greedy = choose_tokens(logits, Sampling(temperature=0, top_p=0.5), torch.full((40,), uniform))
        assert torch.equal(greedy, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-320])
def test_a_temperature_at_which_logits_overflow_is_greedy_too(logits: torch.Tensor, temperature: float) -> None:
    logits[:, 0] = -math.inf
    tokens = choose_tokens(logits, Sampling(temperature=temperature), torch.full((40,), 0.5))
    assert torch.equal(tokens, logits.argmax(-1))


def test_temperature_none_is_the_models_own_distribution() -> None:
    """p = (0.1, 0.2, 0.3, 0.4): the token whose interval of the cumulative (0, 0.1, 0.3, 0.6, 1) holds u."""
    row = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    cases = [(0.0, 0), (0.05, 0), (0.15, 1), (0.299, 1), (0.301, 2), (0.599, 2), (0.601, 3), (BIG, 3)]
    uniforms = torch.tensor([u for u, _ in cases])
    tokens = choose_tokens(row.expand(len(cases), -1), Sampling(), uniforms)
    assert tokens.tolist() == [token for _, token in cases]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, BIG, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_chosen(dtype: torch.dtype, uniform: float) -> None:
    """The first and the last tokens are masked, and three equal ones give a cumulative that rounds below 1."""
    row = torch.tensor([[-math.inf, 0.0, 0.0, 0.0, -math.inf]], dtype=dtype)
    if dtype is torch.float32 and uniform > BIG:
        pytest.skip("not a number below 1 in single precision")
    chosen = choose_tokens(row, Sampling(), torch.tensor([uniform], dtype=dtype))
    assert chosen.tolist() == [1 if uniform == 0 else 3]


def test_a_grid_of_uniforms_reproduces_the_filtered_distribution_exactly(logits: torch.Tensor) -> None:
    """Inverse transform of n equally spaced numbers gives each token within one count of n·p."""
    n, sampling = 10_000, Sampling(temperature=0.7, top_p=0.9)
    uniforms = (torch.arange(n) + 0.5) / n
    counts = torch.bincount(choose_tokens(logits[:1].expand(n, -1), sampling, uniforms), minlength=50)
    expected = n * TopPLogitsWarper(0.9)(None, logits[:1] / 0.7).softmax(-1)[0]
    assert (counts - expected).abs().max() <= 1.01
