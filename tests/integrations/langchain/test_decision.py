"""NablaDecision, against the model's own softmax."""

import math
import re
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage

from langchain_nabla import ChatNabla
from nabla_agents import ConfigurationError, Engine, Greedy
from nabla_agents.testing import FixedReward, scripted_model

decisions: Any = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8 has no decisions")
router: Any = pytest.importorskip("langchain.agents.middleware.model_router")

Box, Choice, Noul, Score = decisions.Box, decisions.Choice, decisions.Noul, decisions.Score
TOPICS = {"apples": "How many apples there are.", "pears": "How many pears there are.", "rain": None}
TOPIC = Choice(instructions="What is it about?", criteria=TOPICS)
HARD = Score(instructions="How hard is it?", criteria=["easy", "not easy", "hard"])
RIGHT = Noul(instructions="Is there a number in it?")
QUESTION = "Tom has 12 apples. He gives away 5."


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.tiny()


@pytest.fixture
def decide(engine: Engine) -> Any:
    """On an engine whose reward is not to be asked."""
    from langchain_nabla import NablaDecision

    def asked(rollout: Any) -> float:
        raise AssertionError("a reward was asked")

    return NablaDecision(ChatNabla(engine=engine.with_reward(FixedReward(asked))))


def shares(engine: Engine, asked: str) -> list[float]:
    """p(A), p(B), p(C) as the next letter, with and without a space, by one pass of the network itself."""
    prompt = engine.prompt(asked, formatted=not engine.model.tokenizer.has_template)
    with torch.no_grad():
        logits = engine.model.transformer.module(torch.tensor([prompt.ids])).logits[0, -1]
    likely = logits.double().softmax(-1)
    ids = [
        [i for i in range(engine.model.vocab_size) if engine.model.tokenizer.token_text(i).strip() == c] for c in "ABC"
    ]
    return [float(likely[each].sum()) for each in ids]


def test_probabilities_are_the_models_own_over_all_turns(decide: Any, engine: Engine) -> None:
    listed = ["apples: How many apples there are.", "pears: How many pears there are.", "rain"]
    end = "Answer with the letter of one option and nothing else."
    rows = [
        shares(
            engine,
            "\n".join(
                [QUESTION, "", "What is it about?", *(f"{c}. {o}" for c, o in zip("ABC", turned, strict=True)), end]
            ),
        )
        for turned in (listed, [*listed[1:], listed[0]], [listed[2], *listed[:2]])
    ]
    likely = [(rows[0][i], rows[1][i - 1], rows[2][i - 2]) for i in range(3)]
    means = [math.prod(each) ** (1 / 3) for each in likely]
    answer = decide.invoke({"state": QUESTION, "questions": {"topic": TOPIC}}).choices["topic"]
    assert list(answer.probabilities.values()) == pytest.approx([m / sum(means) for m in means], abs=1e-5)
    best = max(range(3), key=means.__getitem__)
    assert answer.choice == list(TOPICS)[best]
    assert answer.confidence == pytest.approx(sum(likely[best]) / 3, abs=1e-5)


def test_a_model_that_likes_the_first_letter_decides_nothing_by_it() -> None:
    """Its likelihoods are those of letters alone, and of what stands behind one of them."""
    from langchain_nabla import NablaDecision

    def says(prompt: str) -> str:
        return re.findall(r"^([A-C])\. rain", prompt, re.MULTILINE)[-1] if "wet" in prompt else "A"

    decide = NablaDecision(ChatNabla(engine=Engine(model=scripted_model(says), strategy=Greedy())))
    liked, known = (
        decide.invoke({"state": state, "questions": {"topic": TOPIC}}).choices["topic"] for state in ("dry", "wet")
    )
    assert list(liked.probabilities.values()) == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert known.choice == "rain"
    assert known.probabilities["rain"] > 0.99
    assert known.confidence > 0.99


def test_where_the_list_begins_decides_nothing(decide: Any) -> None:
    turned = Choice(
        instructions=TOPIC.instructions, criteria={label: TOPICS[label] for label in ("rain", "apples", "pears")}
    )
    response = decide.invoke({"state": QUESTION, "questions": {"a": TOPIC, "b": turned}})
    a, b = response.choices["a"].probabilities, response.choices["b"].probabilities
    assert a == pytest.approx({label: b[label] for label in a}, abs=1e-6)


def test_a_score_is_the_expected_level_and_a_noul_the_share_of_yes(decide: Any) -> None:
    state = [HumanMessage(QUESTION), AIMessage("7")]
    response = decide.invoke({"state": state, "questions": {"hard": HARD, "right": RIGHT, "topic": TOPIC}})
    hard = response.scores["hard"]
    assert hard.score == pytest.approx(sum(level * share for level, share in hard.probabilities.items()))
    assert sum(hard.probabilities.values()) == pytest.approx(1)
    assert hard.legend == {0: "easy", 1: "not easy", 2: "hard"}
    assert 0 < response.nouls["right"].noul < 1
    assert list(response.answers) == ["hard", "right", "topic"]
    assert response.usage["output_tokens"] == 3 + 2 + 3
    assert response.usage["input_tokens"] > 8 * 20


async def test_async_says_the_same(decide: Any) -> None:
    request = {"state": {"text": QUESTION, "said": [HumanMessage("Hi")]}, "questions": {"topic": TOPIC}}
    one, other = await decide.ainvoke(request), decide.invoke(request)
    assert one.choices["topic"].probabilities == pytest.approx(other.choices["topic"].probabilities, abs=1e-6)


def test_what_cannot_be_asked_says_so(decide: Any) -> None:
    from langchain_nabla import NablaDecision

    with pytest.raises(ConfigurationError, match="sees images"):
        decide.invoke({"state": "x", "questions": {"where": Box(instructions="the cat")}})
    many = Choice(instructions="Which?", criteria={str(i): None for i in range(27)})
    with pytest.raises(ConfigurationError, match="27 options; expected at most 26"):
        decide.invoke({"state": "x", "questions": {"which": many}})
    with pytest.raises(ConfigurationError, match="loaded here"):
        NablaDecision(base_url="http://localhost:1/v1")
    with pytest.raises(ConfigurationError, match="one of the two"):
        NablaDecision(decide.llm, model="tiny")


@pytest.mark.filterwarnings("ignore:.*beta")
def test_a_router_sends_a_question_where_the_model_says(decide: Any, engine: Engine) -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    models = {name: FakeListChatModel(responses=[name]) for name in ("plain", "refined")}
    instructions = "Which model answers this?"
    criteria = {"plain": "greetings", "refined": "sums"}
    routed = router.ModelRouterMiddleware(
        choices={name: router.ModelChoice(model=model, criteria=criteria[name]) for name, model in models.items()},
        instructions=instructions,
        classifier=decide,
    )
    agent = create_agent(models["plain"], [], middleware=[routed])
    answer = agent.invoke({"messages": [("human", QUESTION)]})
    question = Choice(instructions=instructions, criteria=criteria)
    expected = decide.invoke({"state": HumanMessage(QUESTION), "questions": {"q": question}}).choices["q"]
    assert answer["messages"][-1].text == expected.choice
    assert answer["model_route"].probabilities == pytest.approx(expected.probabilities)
