"""The sibling reward: what a larger model of the language model's family would rather say."""

from __future__ import annotations

from nabla_agents.rewards.learned.implicit import ImplicitReward


class SiblingReward(ImplicitReward):
    """r(y) = β · Σ_t [log π_large(y_t | …) - log π(y_t | …)]: an `ImplicitReward` whose reference is the engine's model
    and whose model is a larger one that reads the same tokens. No training; it scores every token, and steers.

    `SiblingReward.from_pretrained("Qwen/Qwen2.5-Coder-1.5B-Instruct")` for an engine of the 0.5B model. It helps where
    the larger model is better at the task but too slow to write with: it reads whole answers, one forward each, and the
    small one writes. It cannot help beyond what the larger model knows, and verifies nothing: it prefers what that
    would say, be it right or wrong, so a tool should have the last word (`sibling + 2.0 * PythonTests(...)`). Source:
    arXiv 2606.01682; with `pooling` as in `ImplicitReward`.
    """
