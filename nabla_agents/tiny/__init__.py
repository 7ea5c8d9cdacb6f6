"""The embedded models: a small policy, its implicit process reward, and the problems and tasks both were trained on.

The two folders load with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`. Nothing here
imports torch or transformers. What the pair is for, and what it is not, is in `MODEL_CARD.md`; the recipe that trained
it is `benchmarks/tiny/`.
"""

from pathlib import Path
from typing import Final

from nabla_agents.tiny.code_tasks import CodeTask, code_tasks
from nabla_agents.tiny.word_problems import Problem, is_correct, problems

WEIGHTS: Final = Path(__file__).resolve().parent / "weights"
LM_PATH: Final = WEIGHTS / "lm"
REWARD_PATH: Final = WEIGHTS / "reward"

__all__ = ["LM_PATH", "REWARD_PATH", "CodeTask", "Problem", "code_tasks", "is_correct", "problems"]
