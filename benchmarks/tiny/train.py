"""The recipe of both tiny models: one run from nothing, `python -m benchmarks.tiny.train`.

Every `evaluate_every` steps the greedy accuracy on validation problems is measured, on weights rounded to bfloat16. The
first checkpoint that reaches `target_accuracy` is the language model. The run then goes on; its end is the tuned model
of the implicit process reward, whose reference is that language model. Needs two cores and about an hour, or a GPU.
"""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.tiny.corpus import batch
from benchmarks.tiny.model import build_model, greedy_verdicts, load, save
from benchmarks.tiny.optimizer import Muon
from benchmarks.tiny.tokenizer import train_tokenizer
from nabla_agents.tiny import WEIGHTS
from nabla_agents.tiny.code_tasks import CodeTask, code_tasks
from nabla_agents.tiny.word_problems import Problem, problems


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a run depends on, apart from the machine it runs on."""

    seed: int = 0
    steps: int = 2400
    rows: int = 16
    row_tokens: int = 256
    layers: int = 5
    width: int = 192
    heads: int = 6
    inner: int = 640
    matrix_rate: float = 4e-3  # peak learning rate of the blocks' matrices (Muon)
    rate: float = 3e-3  # peak learning rate of the rest (AdamW)
    decay: float = 0.1
    warmup_steps: int = 60
    steady_share: float = 0.4  # of the steps at the peak rates; then they fall linearly to zero
    clip_norm: float = 1.0
    evaluate_every: int = 50
    validation_problems: int = 256
    target_accuracy: float = 0.56

    def scale(self, step: int) -> float:
        """The share of the peak learning rates in use at `step`."""
        steady = self.steps * self.steady_share
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / (self.steps - steady))


@dataclass(slots=True)
class Run:
    """What a checkpoint holds: the model and optimizers in place, and where the run stands."""

    model: Qwen3ForCausalLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    selected_step: int | None = None
    validation: list[tuple[int, float]] = field(default_factory=list)
    code_validation: list[tuple[int, float]] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """Replaces `file` in one move, so that an interruption leaves the old checkpoint or the new one."""
        state = {
            name: getattr(self, name) for name in ("step", "seconds", "selected_step", "validation", "code_validation")
        }
        state["model"] = self.model.state_dict()
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial := file.with_suffix(".partial"))
        os.replace(partial, file)

    def read(self, file: Path) -> None:
        """Takes up the state that `write` left."""
        state: dict[str, Any] = torch.load(file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state.pop("model"))
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state.items():
            setattr(self, name, value)


def train(
    recipe: Recipe,
    out: Path,
    checkpoint: Path,
    *,
    resume: bool = False,
    compiled: bool = False,
    stop_after: int | None = None,
) -> Run:
    """Trains both models into `out/lm` and `out/reward`; returns the run at its end.

    Batches are functions of the seed and the step, so a run resumed from `checkpoint` goes on as if never interrupted.
    `stop_after` interrupts after that many steps, with a checkpoint. Until the target accuracy is reached `out/lm`
    holds the last measured model, and `out/reward` always does.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer(recipe.seed)
    run = _start(recipe, tokenizer, device)
    if resume and checkpoint.exists():
        run.read(checkpoint)
    body = torch.compile(run.model.model, dynamic=False) if compiled else run.model.model
    console = Console(soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=recipe.steps, completed=run.step)
        while run.step < min(recipe.steps, stop_after or recipe.steps):
            began = time.monotonic()
            loss, hits = _update(run, body, tokenizer, recipe)
            run.step += 1
            if run.step % recipe.evaluate_every == 0 or run.step == recipe.steps:
                _measure(run, tokenizer, recipe, out)
                run.seconds += time.monotonic() - began
                run.write(checkpoint)
                console.print(
                    f"step {run.step}  {run.seconds:.0f} s  loss {loss:.3f}  tokens right {hits:.3f}  "
                    f"validation {run.validation[-1][1]:.1%}, code {run.code_validation[-1][1]:.1%}  "
                    f"lm from step {run.selected_step}"
                )
            else:
                run.seconds += time.monotonic() - began
            progress.update(bar, completed=run.step, description=f"loss {loss:.3f}  tokens right {hits:.3f}")
    run.write(checkpoint)
    return run


def _start(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(tokenizer, layers=recipe.layers, width=recipe.width, heads=recipe.heads, inner=recipe.inner)
    torch.nn.Module.to(model, device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return Run(
        model,
        [
            Muon(matrices, lr=recipe.matrix_rate, decay=recipe.decay),
            torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0),
        ],
    )


def _update(run: Run, body: Any, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> tuple[float, float]:
    """One optimizer step; the loss in nats and the share of right tokens, over the assistant's tokens of the batch."""
    data = batch(tokenizer, seed=recipe.seed, step=run.step, rows=recipe.rows, row_tokens=recipe.row_tokens)
    ids, targets = data.ids.to(run.model.device), data.targets.to(run.model.device)
    learnt = targets >= 0
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state[learnt]  # no logits where there is no loss
    logits, expected = run.model.lm_head(hidden), targets[learnt]
    loss = F.cross_entropy(logits, expected)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip_norm)
    for optimizer, peak in zip(run.optimizers, (recipe.matrix_rate, recipe.rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * recipe.scale(run.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item(), (logits.argmax(-1) == expected).float().mean().item()


def _measure(run: Run, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, out: Path) -> None:
    """Saves the model, measures what was saved, and applies the rule that selects the language model."""
    save(run.model, tokenizer, out / "reward")
    rounded, _ = load(out / "reward", run.model.device)
    count = recipe.validation_problems
    accuracy = _accuracy(rounded, tokenizer, problems(count, seed=recipe.seed, split="validation"))
    code_accuracy = _accuracy(rounded, tokenizer, code_tasks(count // 2, seed=recipe.seed, split="validation"))
    run.validation.append((run.step, accuracy))
    run.code_validation.append((run.step, code_accuracy))
    if run.selected_step is None:
        save(run.model, tokenizer, out / "lm")
        if accuracy >= recipe.target_accuracy:
            run.selected_step = run.step


def _accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Problem | CodeTask]
) -> float:
    verdicts = greedy_verdicts(model, tokenizer, asked)
    return sum(right for _, right in verdicts) / len(verdicts)


def main() -> None:
    """The command line: train, then measure on the test split and write `figures.json`."""
    parser = argparse.ArgumentParser(description="Train the tiny language model and its reward from nothing.")
    parser.add_argument("--out", type=Path, default=Path("tiny-models"), help="where the folders lm and reward go")
    parser.add_argument("--install", action="store_true", help="in the end, put them in the embedded models' place")
    parser.add_argument("--checkpoint", type=Path, default=Path("tiny-training.pt"), help="state of an unfinished run")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument("--compile", action="store_true", help="compile the model; quicker where a C++ compiler is")
    arguments = parser.parse_args()
    disable_progress_bar()  # of transformers, at every save and load
    torch.set_num_threads(os.cpu_count() or 1)
    run = train(Recipe(), arguments.out, arguments.checkpoint, resume=arguments.resume, compiled=arguments.compile)
    from benchmarks.tiny.evaluate import write_figures

    write_figures(
        arguments.out,
        training={
            "steps": run.step,
            "seconds": round(run.seconds),
            "lm_step": run.selected_step,
            "validation_accuracy": {step: round(accuracy, 4) for step, accuracy in run.validation},
            "code_validation_accuracy": {step: round(accuracy, 4) for step, accuracy in run.code_validation},
        },
    )
    if arguments.install:
        shutil.copytree(arguments.out, WEIGHTS, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
