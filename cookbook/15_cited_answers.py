"""Cited and checked answers: no citation that nobody wrote, no number that the cited sentence does not have.

A small model that is asked to cite invents its citations. Here it cannot: the answer is an object whose quote is one of
the sentences that were found, under the grammar, and comes before the answer. What the answer says then is held against
the quote: a validator refuses numbers that do not stand there, the search changes the refused field, and where nothing
is accepted, the model reads why and answers again.

The embedded model reads word problems only: a scripted double says what a hasty model would say, first with the wrong
number. Index, grammar, check and retry are those of any model.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id); docs/agents.md has what it answers. Take an
index with embeddings for pages of your own.
"""

import json
import os
import re
from typing import Literal

from llama_index.core import PromptTemplate, SimpleKeywordTableIndex
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel, field_validator

from llama_index.llms.nabla import NablaLLM, StructuredAnswerError
from nabla_agents import ArithmeticSteps, Budget, Engine, Greedy
from nabla_agents.testing import scripted_model

PAGES = [
    "The hut is open from 15 June to 30 September. Outside these dates the winter room is never locked and has 8 beds.",
    "A bed costs 28 euros a night, and 14 euros for guests below 18. Members of the club pay half of that.",
    "Dogs may sleep in the old stable of the hut. They are not allowed in the dormitories.",
    "From the car park at the dam it takes 3 hours to the hut. The ascent is 900 metres.",
    "Hot water is heated by the sun. The showers are open from 16 to 19 o'clock and cost 3 euros.",
]
SILENT = "The pages do not say."
PROMPT = PromptTemplate(
    "{pages}\n\nQuestion: {question}\n"
    f"Quote the sentence that answers the question, then answer it in a few words. Where none does, quote: {SILENT}"
)


def cited_from(found: list[NodeWithScore]) -> type[BaseModel]:
    """The class of answers that quote one of the sentences that were found."""
    sentences = [sentence for node in found for sentence in re.split(r"(?<=\.) ", node.get_content())]

    class Cited(BaseModel):
        """A sentence of the pages, word for word, and what it answers."""

        quote: Literal[(*sentences, SILENT)]  # type: ignore[valid-type]
        answer: str

        @field_validator("answer")
        @classmethod
        def says_no_other_number(cls, answer: str, info) -> str:
            quote = info.data.get("quote", "")
            if strange := [n for n in re.findall(r"\d+", answer) if n not in re.findall(r"\d+", quote)]:
                raise ValueError(f'"{quote}" does not say {", ".join(strange)}')
            return answer

    return Cited


def double(prompt: str) -> str:
    """What a hasty model would say: the right sentence and a wrong number, until it hears of that."""
    if "wifi" in prompt:
        return json.dumps({"quote": SILENT, "answer": "I cannot tell."})
    price = "28 euros" if "does not say" in prompt else "38 euros"
    return json.dumps({"quote": "A bed costs 28 euros a night, and 14 euros for guests below 18.", "answer": price})


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), budget=Budget(rollouts=6))
    questions = [
        "What does a bed cost?",
        "May my dog sleep in the dormitories of the hut?",
        "When are the showers open?",
        "How long does it take from the car park?",
        "Is there wifi in the hut?",
    ]
else:
    engine = Engine(model=scripted_model(double), strategy=Greedy())
    questions = ["What does a bed cost?", "Is there wifi in the hut?", "Who built it?"]

llm = NablaLLM(engine=engine, max_tokens=120, seed=0)
index = SimpleKeywordTableIndex([TextNode(text=page) for page in PAGES], llm=llm)
for question in questions:
    print(f"asked: {question}")
    found = index.as_retriever(retriever_mode="simple", num_chunks_per_query=3).retrieve(question)
    if not found:
        print("Nothing was found.")
        continue
    try:
        pages = "\n".join(node.get_content() for node in found)
        said = llm.structured_predict(cited_from(found), PROMPT, pages=pages, question=question)
        print(f'{said.answer}\n  "{said.quote}"')
    except StructuredAnswerError as error:
        print(f"Nothing that can be cited: {error.__cause__}")

# Prints:
# asked: What does a bed cost?
# 28 euros
#   "A bed costs 28 euros a night, and 14 euros for guests below 18."
# asked: Is there wifi in the hut?
# I cannot tell.
#   "The pages do not say."
# asked: Who built it?
# Nothing was found.
