"""A structured extractor whose validators steer: JSON of the right shape, and of the right content.

The grammar keeps the shape from the first token on. What no grammar can say, a pydantic validator does: that a total
adds up, that a line begins with what was given. It locates the field that it refuses: the model is told why, and writes
anew from there, under the grammar.

The embedded model cannot write numbers into JSON, nor follow what it is told: here it chooses between lines of its own
kind, and `Nabla` changes the tokens of the refused field.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id) reads orders out of letters; docs/agents.md
has what a model of half a billion parameters makes of them.
"""

import os
import time
from typing import Literal

from llama_index.core import PromptTemplate
from pydantic import BaseModel, ValidationInfo, field_validator

from llama_index.llms.nabla import NablaLLM, StructuredAnswerError
from nabla_agents import ArithmeticSteps, Budget, Engine, Nabla


class FirstLine(BaseModel):
    """The line that the working begins with."""

    line: Literal["12 * 3 = 36", "12 + 3 = 15", "36 - 17 = 19", "36 + 17 = 53"]

    @field_validator("line")
    @classmethod
    def begins_with_what_is_given(cls, line: str) -> str:
        if not line.startswith("12 "):
            raise ValueError("the working begins with his 12 apples")
        return line


class Item(BaseModel):
    """What is ordered, how many of it, and the price of one."""

    name: str
    quantity: int
    unit_price: int


class Order(BaseModel):
    """A customer's order; prices are whole euros."""

    customer: str
    items: list[Item]
    shipping: int
    total: int

    @field_validator("total")
    @classmethod
    def adds_up(cls, total: int, info: ValidationInfo) -> int:
        items, shipping = info.data.get("items", []), info.data.get("shipping", 0)
        due = sum(item.quantity * item.unit_price for item in items) + shipping
        if total != due:
            sums = " + ".join(f"{item.quantity} * {item.unit_price}" for item in items)
            raise ValueError(f"{sums} + {shipping} is {due}")
        return total


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), budget=Budget(rollouts=8))
    wanted: type[BaseModel] = Order
    prompt = PromptTemplate(
        "Extract the order from this letter. The total is the sum of quantity times unit price over all items, "
        "and shipping.\n\n{text}"
    )
    texts = [
        "Hello, this is Maria Lopez. Please send me 3 notebooks at 4 euros each and 12 pencils at 2 euros each. "
        "I know that shipping is 5 euros.",
        "Dear shop, I would like 7 lamps (18 euros each) and 2 chairs (45 euros each), shipping 9 euros. Jonas Weber",
        "Could I get 15 cups for 6 euros apiece, 4 plates for 11 and 1 teapot for 38? Delivery costs 7. Aiko Tanaka",
    ]
else:
    engine = Engine.tiny(reward=ArithmeticSteps(), strategy=Nabla(), budget=Budget(rollouts=8))
    wanted, prompt = FirstLine, PromptTemplate("{text}")
    texts = ["Tom has 12 apples. He then has 3 times as many. He gives away 17. How many apples are left?"]

searches = NablaLLM(engine=engine, max_tokens=160, seed=0)
drafts = NablaLLM(engine=engine, max_tokens=160, seed=0, refine_policy="never", structured_retries=0)  # one completion
for text in texts:
    print(text)
    for name, llm in (("draft", drafts), ("searched", searches)):
        begun = time.perf_counter()
        try:
            found = repr(llm.structured_predict(wanted, prompt, text=text))
        except StructuredAnswerError as error:
            found = f"refused: {error.__cause__.errors()[0]['msg']}"
        print(f"  {name}, {time.perf_counter() - begun:.1f} s: {found}")

# Prints:
# Tom has 12 apples. He then has 3 times as many. He gives away 17. How many apples are left?
#   draft, ... s: refused: Value error, the working begins with his 12 apples
#   searched, ... s: FirstLine(line='12 * 3 = 36')
