"""The recipe: resumable to the bit, and its batches carry the loss on the assistant's tokens alone."""

import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny import train as training
from benchmarks.tiny.corpus import batch
from benchmarks.tiny.evaluate import auc, has_wrong_equation, log_likelihood
from benchmarks.tiny.model import build_model, complete, prompt_of
from benchmarks.tiny.optimizer import orthogonal
from benchmarks.tiny.tokenizer import train_tokenizer
from nabla_agents.tiny.word_problems import Problem, problems

SOLUTION = r"(?:\d+ [-+*/] \d+ = \d+\n)+Answer: \d+|```python\ndef \w+\(xs\):\n(?:    .+\n)+```"
MINUTE = training.Recipe(
    steps=3, rows=4, row_tokens=64, layers=1, width=16, heads=2, inner=24, evaluate_every=2, validation_problems=2
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(0)


def test_an_interrupted_run_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train_tokenizer", lambda seed: tokenizer)
    whole = training.train(MINUTE, tmp_path / "a", tmp_path / "a.pt")
    part = training.train(MINUTE, tmp_path / "b", tmp_path / "b.pt", stop_after=1)
    assert part.step == 1
    resumed = training.train(MINUTE, tmp_path / "b", tmp_path / "b.pt", resume=True)
    assert resumed.step == 3
    assert resumed.validation == whole.validation
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
        assert name == "lm_head.weight" or not torch.equal(weight, part.model.state_dict()[name]), name


def test_the_first_model_to_reach_the_target_is_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of measurements 0, 1 and 1, the second is selected: `lm` stays at step 2 while `reward` goes on to step 3."""
    monkeypatch.setattr(training, "train_tokenizer", lambda seed: tokenizer)
    recipe = training.Recipe(**{name: getattr(MINUTE, name) for name in MINUTE.__slots__} | {"evaluate_every": 1})
    verdicts = iter([False, True, True])
    monkeypatch.setattr(
        training,
        "greedy_verdicts",
        lambda model, tokenizer, asked: [("", next(verdicts) if isinstance(asked[0], Problem) else False)],
    )
    run = training.train(recipe, tmp_path, tmp_path / "run.pt")
    assert run.selected_step == 2
    assert (tmp_path / "lm/model.safetensors").read_bytes() != (tmp_path / "reward/model.safetensors").read_bytes()


def test_batches_repeat_and_teach_only_what_the_assistant_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    first = batch(tokenizer, seed=0, step=5, rows=8, row_tokens=256)
    again = batch(tokenizer, seed=0, step=5, rows=8, row_tokens=256)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.targets, again.targets)
    assert first.ids.shape == first.targets.shape == (8, 256)
    learnt = first.targets >= 0
    assert torch.equal(first.targets[:, :-1][learnt[:, :-1]], first.ids[:, 1:][learnt[:, :-1]])
    for ids, targets in zip(first.ids, first.targets, strict=True):
        text = tokenizer.decode(ids)
        written = [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
        taught = tokenizer.decode(targets[targets >= 0]).split("<|im_end|>")
        assert taught[: len(written) - 1] == written[:-1]


def test_every_fourth_batch_has_longer_rows_of_as_many_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    shapes = [tuple(batch(tokenizer, seed=0, step=step, rows=16, row_tokens=64).ids.shape) for step in range(80)]
    assert {shape for step, shape in enumerate(shapes) if step % 4 != 3} == {(16, 64)}
    assert set(shapes[3::4]) == {(4, 256), (2, 512), (1, 1024)}


def test_long_rows_put_foreign_text_before_questions_and_teach_none_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    taught, foreign = 0, 0
    for step in range(3, 80, 4):
        data = batch(tokenizer, seed=0, step=step, rows=16, row_tokens=256)
        for ids, targets in zip(data.ids, data.targets, strict=True):
            replies = tokenizer.decode(targets[targets >= 0]).split("<|im_end|>")
            assert all(re.fullmatch(SOLUTION, reply) for reply in replies[:-1])
            taught += len(replies) - 1
            foreign += tokenizer.decode(ids).partition("<|im_start|>user")[0].count("\n\n")
    assert taught > 400
    assert foreign > 40


def test_completion_of_a_padded_batch_equals_that_of_each_prompt_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = build_model(tokenizer, layers=2, width=16, heads=2, inner=24).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)  # far from ties
    prompts = [prompt_of(problem, tokenizer) for problem in problems(3, seed=0)]
    together = complete(model, tokenizer, prompts)
    assert together == [complete(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert complete(model, tokenizer, prompts, temperature=1.0, seed=1) == complete(
        model, tokenizer, prompts, temperature=1.0, seed=1
    )


def test_log_likelihood_sums_the_completion_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = build_model(tokenizer, layers=1, width=16, heads=2, inner=24).eval()
    prompts, completions = [[5, 6, 7], [8]], [[9], [10, 11, 12]]
    got = log_likelihood(model, prompts, completions)
    for value, prompt, completion in zip(got, prompts, completions, strict=True):
        logs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        by_hand = sum(logs[len(prompt) - 1 + i, token] for i, token in enumerate(completion))
        assert torch.allclose(value, by_hand, atol=1e-4)


def test_auc_counts_pairs() -> None:
    """Of the six pairs 3>1, 3>2, 2>1 and 3>0, 2>0 are right, and 2=2 is half: 5.5 / 6."""
    assert auc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5.5 / 6)


def test_wrong_equations_are_found_by_exact_arithmetic() -> None:
    assert not has_wrong_equation("34 + 27 = 61\n61 - 1 = 60\n60 / 3 = 20\n20 * 4 = 80\nAnswer: 1")
    assert has_wrong_equation("34 + 27 = 61\n61 / 2 = 30\nAnswer: 30")
    assert has_wrong_equation("1 / 0 = 0")


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3
