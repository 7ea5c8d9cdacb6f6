"""The cost of refinement beside the published research code, on the same models, rollout and settings.

    python benchmarks/research_code.py --research FOLDER

FOLDER is a checkout of github.com/VITA-Group/Nabla-Reasoner (nothing of it is part of this project); it needs tqdm and
requests. Both sides refine the same positions of the same random completion, with 20 steps of Adam on one row of
logits, by the gradient of 0.001 · log-likelihood + outcome reward. Each side runs in a process of its own, so that its
peak memory is its own, in turn and several times; ratios are of medians.

The research code differentiates the whole tail anew for each position it visits. This project does so once per
rollout, and then builds one row of the gradient for each position. The written tokens are given logits that 20 steps
cannot overtake: there both algorithms coincide but for the form of the learning rate's cosine and one likelihood term
(that of the end of the text), which is checked, and the research code needs one gradient pass a position instead of up
to 20.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nabla_agents import AdamDTO, LanguageModel, Objective, OutcomeReward, Rollout
from nabla_agents.testing import random_model, random_outcome_reward

LIKELIHOOD_WEIGHT, STEPS, RATE = 1e-3, 20, 0.01
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '> ' + message.content + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--research", type=Path, required=True, help="a checkout of the research code")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tail", type=int, default=256, help="tokens of the completion")
    parser.add_argument("--positions", type=int, default=10, help="refined positions of a question")
    parser.add_argument("--visited", type=int, default=2, help="of these, positions the research code is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("research", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.research / "optimize.py").is_file():
        parser.error(f"{arguments.research} has no optimize.py; expected a checkout of the research code")
    if arguments.side:
        side = research if arguments.side == "research" else ours
        print(json.dumps(side(arguments)))
    else:
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Runs both sides in turn and prints figures and ratios."""
    runs: dict[str, list[dict[str, Any]]] = {"research": [], "ours": []}
    rows: dict[str, Any] = {}
    turns = [side for _ in range(arguments.repeats) for side in runs]
    with tempfile.TemporaryDirectory() as folder:
        for side in track(turns, "measuring", console=Console(stderr=True)):
            file = Path(folder) / f"{side}.pt"
            command = [sys.executable, *sys.argv, "--side", side, "--rows", str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"the {side} side failed:\n{done.stderr}")
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
            rows[side] = torch.load(file, weights_only=True)

    def median(side: str, name: str) -> float:
        return statistics.median(run[name] for run in runs[side])

    table = Table(
        "", "research code", "this project", "ratio", title=f"T = {arguments.tail}, V = {arguments.vocabulary}"
    )
    for name, what, form in (
        ("per_position_seconds", "seconds per visited position", "{:.3f}"),
        ("per_question_seconds", f"seconds per question ({arguments.positions} positions)", "{:.3f}"),
        ("memory_gb", "peak memory above the models, GB", "{:.3f}"),
        ("forward_tokens", "forward tokens per question, both models", "{:.0f}"),
        ("backward_tokens", "backward tokens per question, both models", "{:.0f}"),
    ):
        theirs, own = median("research", name), median("ours", name)
        ratio = f"{theirs / own:.1f}×" if own else "–"
        table.add_row(what, form.format(theirs), form.format(own), ratio)
    Console().print(table)
    theirs, own = rows["research"].double(), rows["ours"][: arguments.visited].double()
    alike = float(torch.nn.functional.cosine_similarity(theirs, own).min())
    signs = float((theirs.sign() == own.sign()).double().mean())
    print(f"moves of the logits: cosine similarity {alike:.4f}, same direction for {signs:.2%} of the tokens")


def made(arguments: argparse.Namespace) -> tuple[LanguageModel, OutcomeReward, Rollout]:
    """The models and a completion of `tail` tokens and its end, the same in every process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    words = ["<eos>", "<system>", "<user>", "<assistant>", "<tool>"]
    words += [f"w{i}" for i in range(arguments.vocabulary - len(words))]
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", chat_template=TEMPLATE)
    shape = {"layers": arguments.layers, "width": arguments.width, "context_length": 2 * arguments.tail + 64}
    model = random_model(tokenizer=hf, **shape)
    reward = random_outcome_reward(hf, seed=1, **shape)
    prompt = model.prompt("w1 w2 w3 w4 w5 w6 w7 w8")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(words) - 5, (arguments.tail,), generator=generator) + 5
    completion = (*ids.tolist(), hf.eos_token_id)
    return model, reward, Rollout(prompt, completion, model.tokenizer.decode(completion))


def positions(arguments: argparse.Namespace) -> list[int]:
    """Where a question is refined: evenly spread over the completion."""
    return [i * arguments.tail // arguments.positions for i in range(arguments.positions)]


def raised(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits whose argmax are the written tokens by far: the research code refines the argmax, whatever was written."""
    return logits.scatter(-1, tokens[:, None], logits.amax(-1, keepdim=True) + 1.0)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    model, reward, rollout = made(arguments)
    objective = Objective(model, reward, likelihood_weight=LIKELIHOOD_WEIGHT)
    dto = AdamDTO(steps=STEPS, learning_rate=RATE, final_learning_rate=RATE / 10, stop_on_flip=False)
    before, started = _memory_bytes(), time.perf_counter()
    [read] = model.read_prompts([rollout.prompt])
    [gradient] = objective.gradient([rollout], [None], [0])
    usage = read + gradient.usage
    passed = time.perf_counter()
    rows = []
    for position in positions(arguments):
        logits = raised(gradient.logits([position]), torch.tensor([rollout.completion_ids[position]]))
        rows.append(dto.refine(logits, gradient.rows([position]))[0] - logits[0])
    ended = time.perf_counter()
    torch.save(torch.stack(rows), arguments.rows)
    return {
        "per_position_seconds": (ended - passed) / arguments.positions,
        "per_question_seconds": ended - started,
        "memory_gb": (_memory_bytes() - before) / 1e9,
        "forward_tokens": usage.lm_forward_tokens + usage.reward_forward_tokens,
        "backward_tokens": usage.lm_backward_tokens + usage.reward_backward_tokens,
    }


def research(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(arguments.research))
    from optimize import LatentTrainer  # type: ignore[import-not-found]

    model, reward, rollout = made(arguments)
    hf, ids = model.tokenizer.hf, torch.tensor([rollout.completion_ids[:-1]])  # its template adds the end
    with torch.no_grad():
        read = torch.cat([torch.tensor([rollout.prompt.ids]), ids], dim=1)
        logits = model.transformer.module(read, logits_to_keep=ids.shape[1] + 1).logits[:, :-1].clone()
    trainer = LatentTrainer(
        model.transformer.module,
        hf,
        reward.transformer.module,
        hf,
        max_iters=STEPS,
        learning_rate=RATE,
        reward_coeff=1.0,
        nll_coeff=LIKELIHOOD_WEIGHT,
        mixed_precision=torch.float32,
        grad_caching=True,
    )
    counted = {"forward": 0, "backward": 0}
    for body in (model.transformer.body, reward.transformer.body):
        body.register_forward_hook(lambda *hook: _count(counted, hook[-1]), with_kwargs=True)
    before, started = _memory_bytes(), time.perf_counter()
    rows = []
    chosen = positions(arguments)[: arguments.visited]
    for position in chosen:
        tail = raised(logits[0, position:], ids[0, position:])[None]
        refined = trainer.optimize(rollout.prompt.messages[0].content, ids[:, :position], tail)["logits"]
        rows.append(refined[0, 0] - tail[0, 0])
    seconds = (time.perf_counter() - started) / len(chosen)
    torch.save(torch.stack(rows), arguments.rows)
    share = arguments.positions / len(chosen)
    return {
        "per_position_seconds": seconds,
        "per_question_seconds": seconds * arguments.positions,
        "memory_gb": (_memory_bytes() - before) / 1e9,
        "forward_tokens": counted["forward"] * share,
        "backward_tokens": counted["backward"] * share,
    }


def _count(counted: dict[str, int], output: Any) -> None:
    hidden = output.last_hidden_state
    counted["forward"] += hidden.shape[0] * hidden.shape[1]
    if hidden.requires_grad:
        hidden.register_hook(lambda g: counted.update(backward=counted["backward"] + g.shape[0] * g.shape[1]))


def _memory_bytes() -> int:
    """Of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
