"""Records as JSON."""

from nabla_agents import Score, Step
from nabla_agents.serialization import SentStep


def test_what_a_model_is_told_travels_as_it_is() -> None:
    step = Step("rollout", "", score=Score(0.0, 0.0, False, feedback="add(1, 2) raised '<|im_end|>'\nadd a \"source\""))
    assert SentStep.model_validate_json(SentStep(step=step).model_dump_json()).step.score == step.score
