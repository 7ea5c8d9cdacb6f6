"""The objective's gradient against automatic differentiation of the whole one-hot objective, in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nabla_agents import (
    ConfigurationError,
    ImplicitReward,
    LanguageModel,
    Message,
    Objective,
    Reward,
    Rollout,
    Sampling,
    Score,
    Span,
)
from nabla_agents.models.language_model import HEAD_CHUNK
from nabla_agents.models.rows import RolloutJob
from nabla_agents.models.transformer import Transformer
from nabla_agents.objective import ObjectiveGradient, token_credit
from nabla_agents.testing import (
    FixedReward,
    byte_tokenizer,
    random_model,
    random_outcome_reward,
    random_process_reward,
    word_tokenizer,
)

WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")
A, B, CD, EFG, H, LAST_WORD, BREAK, EOS = range(8)
ARCHITECTURES = ("qwen2", "gemma3", "llama")
COMPLETION = (A, CD, BREAK, B, EFG, A, BREAK, H, EOS)
STEP_ENDS = (2, 6, 7)  # the last token of each step of COMPLETION
LONGER = (LAST_WORD, LAST_WORD, H, BREAK, B, CD, CD, A, BREAK, EFG, B, H, A, BREAK)
LONGER_ENDS = (3, 8, 13)
TOLERANCE = 1e-6


@cache
def policy(architecture: Any = "qwen2", seed: int = 0, **shape: Any) -> LanguageModel:
    return random_model(architecture, vocabulary=WORDS, dtype=torch.float64, seed=seed, **shape)


def completed(model: LanguageModel, ids: Sequence[int] = COMPLETION, question: str = "abcd") -> Rollout:
    visible = [i for i in ids if i != EOS]
    return Rollout(model.prompt(question), tuple(ids), model.tokenizer.decode(visible))


def sampled(
    model: LanguageModel, seed: int = 0, *, temperature: float = 1.5, max_tokens: int = 14, question: str = "cdh"
) -> Rollout:
    uniforms = torch.rand(max_tokens, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(temperature=temperature)
    return model.rollout([RolloutJob(model.prompt(question), (), sampling, max_tokens, uniforms)])[0]


# ── the truth: every row a leaf, every model a plain transformers module ──────────────────────────────────────────────


def soft_logits(module: Any, prompt: Sequence[int], rows: Tensor) -> Tensor:
    """What a transformers module says about a prompt followed by rows over the vocabulary instead of tokens."""
    embedding = module.get_input_embeddings()
    table = embedding(torch.arange(embedding.num_embeddings))
    return module(inputs_embeds=torch.cat([table[list(prompt)], rows @ table])[None], use_cache=False).logits[0]


def soft_log_likelihood(model: LanguageModel, rollout: Rollout, rows: Tensor) -> Tensor:
    """Σ <row_t, log π(· | …)>."""
    logits = soft_logits(model.transformer.module, rollout.prompt.ids, rows)
    return (rows * logits[len(rollout.prompt.ids) - 1 : -1].log_softmax(-1)).sum()


SoftReward = Callable[[Rollout, Tensor], Tensor]


def truth(
    model: LanguageModel, rollout: Rollout, reward: SoftReward | None = None, *, likelihood_weight: float = 1.0
) -> Tensor:
    """∂J/∂ rows [time, vocab]."""
    rows = torch.nn.functional.one_hot(torch.tensor(rollout.completion_ids), model.vocab_size).double()
    rows.requires_grad_()
    value = likelihood_weight * soft_log_likelihood(model, rollout, rows)
    if reward is not None:
        value = value + reward(rollout, rows)
    return torch.autograd.grad(value, rows)[0]


Case = tuple[Reward, SoftReward]


def implicit(model: LanguageModel, architecture: str, *, own_reference: bool, beta: float) -> Case:
    tuned = policy(architecture, seed=1)
    reference = policy(architecture, seed=2) if own_reference else model

    def value(rollout: Rollout, rows: Tensor) -> Tensor:
        return beta * (soft_log_likelihood(tuned, rollout, rows) - soft_log_likelihood(reference, rollout, rows))

    return ImplicitReward(tuned, reference if own_reference else None, beta=beta), value


def process(model: LanguageModel, architecture: Any, *, aggregation: Any, labels: int = 2) -> Case:
    hf = model.tokenizer.hf
    # Gemma 3 has no token classification model in every version of transformers.
    architecture = "qwen2" if architecture == "gemma3" else architecture
    reward = random_process_reward(
        hf, architecture, aggregation=aggregation, labels=labels, seed=3, dtype=torch.float64
    )

    def value(rollout: Rollout, rows: Tensor) -> Tensor:
        ends = {COMPLETION: STEP_ENDS, LONGER: LONGER_ENDS}[rollout.completion_ids]
        logits = soft_logits(reward.transformer.module, rollout.prompt.ids, rows)
        read = logits[[len(rollout.prompt.ids) + e for e in ends]]
        p = torch.sigmoid(read[:, 0]) if labels == 1 else torch.softmax(read, -1)[:, 1]
        return {"min": p.min(), "mean": p.mean(), "product": p.prod(), "last": p[-1]}[aggregation]

    return reward, value


def outcome(model: LanguageModel, architecture: Any) -> Case:
    architecture = "qwen2" if architecture == "gemma3" else architecture
    reward = random_outcome_reward(model.tokenizer.hf, architecture, seed=4, dtype=torch.float64)

    def value(rollout: Rollout, rows: Tensor) -> Tensor:
        return soft_logits(reward.transformer.module, rollout.prompt.ids, rows).sum()  # one label of one last token

    return reward, value


def weighted_sum(model: LanguageModel, architecture: Any) -> Case:
    parts = [
        (0.5, implicit(model, architecture, own_reference=False, beta=0.4)),
        (2.0, process(model, architecture, aggregation="mean")),
        (-0.3, outcome(model, architecture)),
    ]

    def value(rollout: Rollout, rows: Tensor) -> Tensor:
        return torch.stack([w * soft(rollout, rows) for w, (_, soft) in parts]).sum()

    total = parts[0][0] * parts[0][1][0] + parts[1][0] * parts[1][1][0]
    return total + parts[2][1][0] * parts[2][0], value


CASES: Mapping[str, Callable[[LanguageModel, str], Case]] = {
    "implicit": lambda m, a: implicit(m, a, own_reference=False, beta=1.0),
    "implicit, beta": lambda m, a: implicit(m, a, own_reference=False, beta=0.25),
    "implicit, own reference": lambda m, a: implicit(m, a, own_reference=True, beta=2.5),
    "process, min": lambda m, a: process(m, a, aggregation="min"),
    "process, mean": lambda m, a: process(m, a, aggregation="mean"),
    "process, product": lambda m, a: process(m, a, aggregation="product"),
    "process, last": lambda m, a: process(m, a, aggregation="last"),
    "process, one label": lambda m, a: process(m, a, aggregation="product", labels=1),
    "outcome": outcome,
    "sum": weighted_sum,
}


def rows_of(
    objective: Objective, rollouts: Sequence[Rollout], starts: Sequence[int] | None = None, *, cached: bool = False
) -> list[Tensor]:
    """The gradient's rows at every position from each start on."""
    starts = [0] * len(rollouts) if starts is None else starts
    model = objective.model
    if cached:
        model.read_prompts([r.prompt for r in rollouts])
    gradients = objective.gradient(rollouts, [None] * len(rollouts), starts)
    return [
        g.rows(range(start, len(r.completion_ids))) for g, r, start in zip(gradients, rollouts, starts, strict=True)
    ]


def assert_equal_everywhere(rows: Tensor, expected: Tensor) -> None:
    """Relative error within 1e-6 at every position: against the largest entry of that position's row."""
    assert rows.shape == expected.shape
    assert rows.dtype == torch.float64
    error = (rows - expected).abs().amax(-1)
    allowed = TOLERANCE * expected.abs().amax(-1)
    assert bool((error <= allowed).all()), (error / expected.abs().amax(-1)).tolist()


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("architecture", "window"),
    [("llama", None), *((a, w) for a in ("qwen2", "qwen3", "mistral", "gemma2", "gemma3") for w in (None, 6))],
)
def test_likelihood_alone(architecture: Any, window: int | None) -> None:
    """Without a reward the objective runs; in the research code it was a KeyError."""
    model = policy(architecture, sliding_window=window)
    rollout = completed(model)
    for cached in (False, True):
        [rows] = rows_of(Objective(model), [rollout], cached=cached)
        assert_equal_everywhere(rows, truth(model, rollout))


@pytest.mark.parametrize("likelihood_weight", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rewards_of_every_family(architecture: str, case: str, likelihood_weight: float) -> None:
    """At weight 0 nothing but the reward is left, so that its own gradient is held to the same precision."""
    model = policy(architecture)
    reward, soft = CASES[case](model, architecture)
    rollout = completed(model)
    [rows] = rows_of(Objective(model, reward, likelihood_weight=likelihood_weight), [rollout])
    assert_equal_everywhere(rows, truth(model, rollout, soft, likelihood_weight=likelihood_weight))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_committed_tokens_are_fixed_and_still_count(architecture: str, case: str) -> None:
    """From `start` on the rows are those of the whole objective: steps that are committed stay in its value."""
    model = policy(architecture)
    reward, soft = CASES[case](model, architecture)
    rollout = completed(model)
    expected = truth(model, rollout, soft, likelihood_weight=0.5)
    objective = Objective(model, reward, likelihood_weight=0.5)
    for start, cached in ((1, True), (3, False), (5, True), (len(COMPLETION) - 1, True)):
        [rows] = rows_of(objective, [rollout], [start], cached=cached)
        assert_equal_everywhere(rows, expected[start:])


def test_a_committed_step_scales_the_gradient_of_a_product() -> None:
    """The gradient of a product contains the committed step's probability; that of the last step does not."""
    model = policy()
    logs: list[Tensor] = []
    for aggregation in ("product", "last"):
        reward, _ = process(model, "qwen2", aggregation=aggregation)
        rollout = completed(model, (A, CD, BREAK, B, EFG))
        p = torch.tensor([(s.value + 1) / 2 for s in reward.score([rollout])[0].spans], dtype=torch.float64)
        assert len(p) == 2
        assert 0.01 < p[0] < 0.99
        [tail] = rows_of(Objective(model, reward, likelihood_weight=0.0), [rollout], [3])
        logs.append(tail / p[0] if not logs else tail)
    assert_equal_everywhere(logs[0], logs[1])


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_different_lengths_equals_single_rollouts(architecture: str, cached: bool) -> None:
    model = policy(architecture)
    reward, soft = weighted_sum(model, architecture)
    objective = Objective(model, reward)
    rollouts = [completed(model), completed(model, LONGER, "hi"), completed(model, question="efgacdbhi")]
    for starts in ([0, 0, 0], [2, 7, 0]):
        for rollout, start, rows in zip(
            rollouts, starts, rows_of(objective, rollouts, starts, cached=cached), strict=True
        ):
            assert_equal_everywhere(rows, truth(model, rollout, soft)[start:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_embedding_terms_the_direct_term_is_left(architecture: str) -> None:
    model = policy(architecture)
    rollout = completed(model)
    tuned, reference = policy(architecture, seed=1), policy(architecture, seed=2)

    def direct(lm: LanguageModel) -> Tensor:
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.completion_ids]])
        logits = lm.transformer.module(input_ids=ids, use_cache=False).logits[0]
        return logits[len(rollout.prompt.ids) - 1 : -1].log_softmax(-1)

    expected = {
        None: 0.5 * direct(model),
        ImplicitReward(tuned, beta=2.0): 0.5 * direct(model) + 2.0 * (direct(tuned) - direct(model)),
        ImplicitReward(tuned, reference): 0.5 * direct(model) + direct(tuned) - direct(reference),
    }
    for reward, rows in expected.items():
        objective = Objective(model, reward, likelihood_weight=0.5, embedding_terms=False)
        [got] = rows_of(objective, [rollout])
        assert_equal_everywhere(got, rows)
        [gradient] = objective.gradient([rollout], [None], [0])
        assert (gradient.usage.lm_backward_tokens, gradient.usage.reward_backward_tokens) == (0, 0)


# ── whose tokens, which positions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_belong_to_the_rollouts_own_tokens(architecture: str) -> None:
    """The research code differentiated at the argmax of the rollout's logits: a text that nobody wrote."""
    model = policy(architecture)
    rollout = sampled(model)
    [gradient] = Objective(model).gradient([rollout], [None], [0])
    everywhere = range(len(rollout.completion_ids))
    argmax = gradient.logits(everywhere).argmax(-1).tolist()
    differing = sum(a != y for a, y in zip(argmax, rollout.completion_ids, strict=True))
    assert differing >= 3
    assert_equal_everywhere(gradient.rows(everywhere), truth(model, rollout))
    other = truth(model, dataclasses.replace(rollout, completion_ids=tuple(argmax)))
    assert float((gradient.rows(everywhere) - other).abs().amax(-1)[1:].max()) > 0.1


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_aligned_with_the_completion(architecture: str, cached: bool) -> None:
    """The argmax at position t is the token that greedy decoding writes there; server latents were shifted by the
    context's length.
    """
    model = policy(architecture)
    greedy = [sampled(model, temperature=0.0, question=q) for q in ("cdh", "a", "bb", "hi", "ihi", "efgb")]
    rollout = max(greedy, key=lambda r: len(r.completion_ids))
    if cached:
        model.read_prompts([rollout.prompt])
    length = len(rollout.completion_ids)
    assert length > 5
    for start in (0, 1, length - 2):
        [gradient] = Objective(model).gradient([rollout], [None], [start])
        positions = range(start, length)
        assert tuple(gradient.logits(positions).argmax(-1).tolist()) == rollout.completion_ids[start:]
        one_by_one = torch.cat([gradient.logits([p]) for p in positions])
        assert torch.allclose(one_by_one, gradient.logits(positions), rtol=1e-12)
        backwards = list(reversed(positions))
        assert torch.allclose(gradient.rows(backwards).flip(0), gradient.rows(positions), rtol=1e-12)


def test_the_log_probabilities_of_a_rollout_are_its_logits() -> None:
    model = policy()
    rollout = sampled(model)
    [gradient] = Objective(model).gradient([rollout], [None], [0])
    log_p = gradient.logits(range(len(rollout.completion_ids))).log_softmax(-1)
    own = log_p[range(len(rollout.completion_ids)), list(rollout.completion_ids)]
    assert rollout.log_probs is not None
    assert torch.allclose(own, rollout.log_probs, atol=1e-6)


def test_the_same_prompt_reaches_rollout_objective_and_rewards() -> None:
    """A system prompt and several turns; the research code lost the system prompt, and all but one user turn."""
    model = random_model(vocabulary=WORDS)
    turns = [Message("system", "ab"), Message("user", "cd"), Message("assistant", "efg"), Message("user", "hi")]
    hf = model.tokenizer.hf
    tuned = random_model(tokenizer=hf, seed=1)
    rewards = [random_process_reward(hf), random_outcome_reward(hf, "llama"), ImplicitReward(tuned)]
    expected = hf.apply_chat_template([m.as_template_input() for m in turns], add_generation_prompt=True)["input_ids"]
    prompt = model.prompt(turns)
    assert list(prompt.ids) == expected
    objective = Objective(model, rewards[0] + rewards[1] + rewards[2])
    modules = [model.transformer.module, *(r.transformer.module for r in rewards[:2]), tuned.transformer.module]
    reads: list[list[int]] = [[] for _ in modules]
    for module, read in zip(modules, reads, strict=True):
        module.get_input_embeddings().register_forward_pre_hook(lambda _, args, r=read: r.extend(args[0][0].tolist()))

    [rollout] = model.rollout([RolloutJob(prompt, (), Sampling(temperature=1.0), 8, torch.linspace(0.1, 0.9, 8))])
    whole = [*expected, *rollout.completion_ids]
    assert reads[0] == whole[:-1]
    reads[0].clear()
    scores = objective.score([rollout])
    assert reads == [[], whole, whole, whole[:-1]]
    for read in reads:
        read.clear()
    objective.gradient([rollout], scores, [0])
    tail = whole[len(expected) :]  # what a reward has read of the prompt, it keeps
    assert reads == [whole[:-1], tail, tail, whole[len(expected) - 1 : -1]]


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def held_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor that an object holds, a model's weights excepted."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, LanguageModel | Transformer | torch.nn.Module):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from held_tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from held_tensors(item)
    elif hasattr(value, "__dict__"):
        yield from held_tensors(vars(value))


class Widest(TorchDispatchMode):
    """The most rows over the vocabulary that any tensor made meanwhile has."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[-1] == self.vocab_size:
                self.rows = max(self.rows, tensor.numel() // self.vocab_size)
        return out


def test_a_gradient_holds_no_rows_over_the_vocabulary() -> None:
    """O(T·d) memory; the research code held a dozen [time, vocab] tensors to update one row."""
    model = random_model()  # bytes: 261 tokens
    hf = model.tokenizer.hf
    objective = Objective(
        model,
        ImplicitReward(random_model(seed=1)) + random_process_reward(hf) + 2.0 * random_outcome_reward(hf),
    )
    text = "so 1 + 2 = 3\n" * 12
    ids = model.tokenizer.encode(text)
    rollout = Rollout(model.prompt("how much?"), tuple(ids), text)
    assert len(ids) > 2 * HEAD_CHUNK
    with Widest(model.vocab_size) as widest:
        [gradient] = objective.gradient([rollout], [None], [0])
    assert 0 < widest.rows <= HEAD_CHUNK
    tensors = list(held_tensors(gradient))
    assert len(tensors) >= 5  # hidden and embedding gradient of two language models, two embedding gradients
    for tensor in tensors:
        assert model.vocab_size not in tensor.shape
        assert tensor.numel() <= len(ids) * 32
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    assert gradient.rows([0, 7]).shape == (2, model.vocab_size)


# ── value and settings ────────────────────────────────────────────────────────────────────────────────────────────────


def test_value_is_weighted_likelihood_plus_score() -> None:
    model = policy()
    rollout = sampled(model)
    with torch.no_grad():
        one_hot = torch.nn.functional.one_hot(torch.tensor(rollout.completion_ids), model.vocab_size).double()
        log_likelihood = float(soft_log_likelihood(model, rollout, one_hot))
    objective = Objective(model, FixedReward(lambda _: 2.5), likelihood_weight=0.3)
    [score] = objective.score([rollout])
    assert objective.value(rollout, score) == pytest.approx(0.3 * log_likelihood + 2.5, abs=1e-6)
    assert Objective(model).score([rollout]) == [None]
    assert Objective(model).value(rollout, None) == pytest.approx(log_likelihood, abs=1e-6)
    assert math.isnan(objective.value(rollout, Score.not_judged("no")))


def test_no_likelihood_is_needed_at_weight_zero() -> None:
    model = policy()
    objective = Objective(model, FixedReward(lambda _: 2.5), likelihood_weight=0.0)
    assert objective.value(completed(model), Score(2.5)) == 2.5
    [rows] = objective.gradient([completed(model)], [Score(2.5)], [0])
    assert rows.rows(range(9)).tolist() == [[0.0] * model.vocab_size] * 9


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="likelihood_weight"):
        Objective(policy(), likelihood_weight=weight)


# ── credit of located verdicts ────────────────────────────────────────────────────────────────────────────────────────

DIGITS = (*"0123456789", *"+=; é", "日", "10")
TOKENS = {word: i for i, word in enumerate(DIGITS)}


@cache
def calculator(seed: int = 0) -> LanguageModel:
    return random_model(tokenizer=word_tokenizer(DIGITS), layers=1, width=16, seed=seed)


def written(text: str, *, ended: bool = True) -> Rollout:
    model = calculator()
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == text
    eos = model.tokenizer.eos_id
    assert eos is not None
    return Rollout(model.prompt("1+1"), (*ids, eos) if ended else tuple(ids), text)


def credit_of(rollout: Rollout, *spans: Span) -> dict[int, dict[str, float]]:
    """The credit with tokens by name."""
    tokenizer = calculator().tokenizer
    credit = token_credit(tokenizer, rollout, spans)
    return {p: {tokenizer.token_text(v): nats for v, nats in row.items()} for p, row in credit.items()}


TABLE = [
    ("2+3=6;", Span(4, 5, -1.0, "5"), {4: {"6": -1, "5": 1}}),
    ("2+3=6;", Span(4, 5, -1.0, "5", credit=2.5), {4: {"6": -2.5, "5": 2.5}}),
    ("2+3=6;", Span(4, 5, -0.5, "5"), {4: {"6": -0.5, "5": 1}}),
    # longer
    ("7+5=2;", Span(4, 5, -1.0, "12"), {4: {"2": -1, "1": 1}}),
    ("7+5=1;", Span(4, 5, -1.0, "12"), {5: {";": -1, "2": 1}}),  # only what follows differs
    ("7+5=11;", Span(4, 6, -1.0, "12"), {5: {"1": -1, "2": 1}}),
    ("7+3=9;", Span(4, 5, -1.0, "10"), {4: {"9": -1, "10": 1}}),  # one token for two digits
    # shorter
    ("7+1=81;", Span(4, 6, -1.0, "8"), {5: {"1": -1, ";": 1}}),
    ("7+1=92;", Span(4, 6, -1.0, "8"), {4: {"9": -1, "8": 1}, 5: {"2": -1}}),
    ("7+1=10;", Span(4, 6, -1.0, "8"), {4: {"10": -1, "8": 1}}),
    # several tokens
    ("8+8=234;", Span(4, 7, -1.0, "294"), {5: {"3": -1, "9": 1}, 6: {"4": -1}}),
    ("8+8=234;", Span(4, 7, -1.0, "156"), {4: {"2": -1, "1": 1}, 5: {"3": -1}, 6: {"4": -1}}),
    # nothing is known to be expected
    ("2+3=6;", Span(4, 5, -1.0), {4: {"6": -1}}),
    ("2+3=66;", Span(3, 6, -1.0), {3: {"=": -1}, 4: {"6": -1}, 5: {"6": -1}}),
    ("7+3=10;", Span(5, 6, -1.0), {4: {"10": -1}}),  # half of a token is the token
    # right
    ("2+3=5;", Span(0, 5, 1.0), {0: {"2": 1}, 1: {"+": 1}, 2: {"3": 1}, 3: {"=": 1}, 4: {"5": 1}}),
    ("2+3=5;", Span(4, 5, 0.5, credit=3.0), {4: {"5": 1.5}}),
    # at the end
    ("2+3=6", Span(4, 5, -1.0, "5"), {4: {"6": -1, "5": 1}}),
    ("2+3=6", Span(4, 5, -1.0), {4: {"6": -1}}),
    ("7+5=2", Span(4, 5, -1.0, "12"), {4: {"2": -1, "1": 1}}),
    # characters, not bytes
    ("日é+日=6;", Span(5, 6, -1.0, "5"), {5: {"6": -1, "5": 1}}),
    ("6=日;", Span(2, 3, -1.0, "é"), {2: {"日": -1, "é": 1}}),
    # no verdict
    ("2+3=6;", Span(4, 7, -1.0, "5"), {}),  # beyond the text
    ("2+3=6;", Span(9, 12, -1.0), {}),
    ("2+3=6;", Span(4, 4, -1.0), {}),
    ("2+3=6;", Span(4, 5, -1.0, "5", credit=0.0), {}),
    ("2+3=5;", Span(4, 5, -1.0, "5"), {}),  # what is expected is what is written
]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize(("text", "span", "expected"), TABLE, ids=lambda x: x if isinstance(x, str) else "")
def test_credit_of_one_span(text: str, span: Span, expected: dict[int, dict[str, float]], ended: bool) -> None:
    assert credit_of(written(text, ended=ended), span) == expected


def test_credit_of_several_spans_adds() -> None:
    rollout = written("2+3=6;7+1=8;")
    spans = (Span(4, 5, -1.0, "5"), Span(6, 11, 0.5), Span(10, 11, 1.0, credit=2.0), Span(4, 5, -1.0, credit=0.25))
    expected = {4: {"6": -1.25, "5": 1}, 6: {"7": 0.5}, 7: {"+": 0.5}, 8: {"1": 0.5}, 9: {"=": 0.5}, 10: {"8": 2.5}}
    assert credit_of(rollout, *spans) == expected
    assert credit_of(rollout) == {}


def test_credit_counts_characters_where_tokens_are_bytes() -> None:
    model = random_model(tokenizer=byte_tokenizer(), layers=1, width=16)
    text = "日é=3"
    ids = model.tokenizer.encode(text)
    assert len(ids) == 7
    rollout = Rollout(model.prompt("?"), tuple(ids), text)
    [two], [three] = model.tokenizer.encode("2"), model.tokenizer.encode("3")
    assert token_credit(model.tokenizer, rollout, [Span(3, 4, -1.0, "2")]) == {6: {two: 1.0, three: -1.0}}
    assert token_credit(model.tokenizer, rollout, [Span(2, 3, 1.0)]) == {5: {ids[5]: 1.0}}


def judged(*spans: Span, value: float = -1.0) -> FixedReward:
    return FixedReward(lambda _: Score(value, verdict=value, spans=spans))


def credited(reward: Reward, rollout: Rollout) -> ObjectiveGradient:
    objective = Objective(calculator(), reward)
    scores = objective.score([rollout])
    return objective.gradient([rollout], scores, [0])[0]


def test_credit_is_all_of_the_rows_where_only_tools_judge_and_no_backward_pass_is_paid() -> None:
    rollout = written("2+3=6;")
    gradient = credited(judged(Span(4, 5, -1.0, "5", credit=1.5)), rollout)
    rows = gradient.rows(range(len(rollout.completion_ids)))
    expected = torch.zeros_like(rows)
    expected[4, TOKENS["6"]], expected[4, TOKENS["5"]] = -1.5, 1.5
    assert torch.equal(rows, expected)
    assert gradient.credit == {4: {TOKENS["6"]: -1.5, TOKENS["5"]: 1.5}}
    assert gradient.usage.lm_backward_tokens == 0
    assert gradient.usage.lm_forward_tokens > 0


def test_credit_adds_to_the_rows_of_likelihood_and_learned_reward() -> None:
    rollout, model, tuned = written("2+3=6;"), calculator(), calculator(seed=5)
    everywhere = range(len(rollout.completion_ids))
    learned, tool = ImplicitReward(tuned), judged(Span(4, 5, -1.0, "5", credit=1.5))
    rows = []
    for reward in (learned, learned + tool):
        objective = Objective(model, reward)
        [gradient] = objective.gradient([rollout], objective.score([rollout]), [0])
        rows.append(gradient.rows(everywhere))
        assert gradient.usage.lm_backward_tokens > 0
    expected = torch.zeros_like(rows[0])
    expected[4, TOKENS["6"]], expected[4, TOKENS["5"]] = -1.5, 1.5
    assert torch.allclose(rows[1] - rows[0], expected, atol=1e-5)


class Opaque(FixedReward):
    """A reward that runs a model and has no gradient, as one of a disjoint vocabulary."""

    @property
    def learned(self) -> bool:
        return True


def test_a_learned_reward_without_gradient_leaves_the_likelihoods_unless_a_tool_locates_something() -> None:
    rollout, everywhere = written("2+3=6;"), range(6)
    span, learned = judged(Span(4, 5, -1.0, "5", credit=1.5)), Opaque(lambda _: 0.5)
    alone = credited(learned, rollout).rows(everywhere)
    [likelihood] = Objective(calculator()).gradient([rollout], [None], [0])
    assert alone.any()
    assert torch.allclose(alone, likelihood.rows(everywhere))
    assert torch.equal(credited(learned + span, rollout).rows(everywhere), credited(span, rollout).rows(everywhere))


def test_weights_of_a_sum_scale_the_credit() -> None:
    rollout = written("2+3=6;")
    reward = (
        3.0 * judged(Span(4, 5, -1.0, "5")) + 0.5 * judged(Span(2, 3, 1.0, credit=4.0)) + FixedReward(lambda _: 1.0)
    )
    assert credited(reward, rollout).credit == {
        4: {TOKENS["6"]: -3.0, TOKENS["5"]: 3.0},
        2: {TOKENS["3"]: 2.0},
    }
    assert credited(0.0 * judged(Span(4, 5, -1.0, "5")), rollout).credit == {}


def test_what_could_not_be_judged_gives_no_credit() -> None:
    rollout = written("2+3=6;")
    span = Span(4, 5, -1.0, "5")
    assert credited(judged(span, value=math.nan), rollout).credit == {}
    unjudged = FixedReward(lambda _: Score.not_judged("no"))
    assert credited(unjudged, rollout).credit == {}
    assert credited(judged(span) + unjudged, rollout).credit == {}
    assert not credited(unjudged, rollout).rows([4]).any()
