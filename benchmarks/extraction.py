"""Orders out of letters: what is a validator worth that says which field it refuses, and why?

    python benchmarks/extraction.py coder-0.5b.gguf --dtype bfloat16 --out benchmarks/results/real/extraction

Each letter orders two or three things; the model writes them as JSON, decoded under the schema of `Order`, whose
validator computes the total and refuses the field `total` where it is another. Right is an object with all
quantities, prices, the shipping and the total of the letter: of these the validator sees only the last. All searches
have the same rollouts, the same grammar, and the class as their reward. The letters are made from a seed, so that
each is new to every model. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator
from rich.console import Console

from nabla_agents import (
    BestOfN,
    Budget,
    ChatOptions,
    FeedbackDirection,
    Grammar,
    Greedy,
    LanguageModel,
    Message,
    Nabla,
    PydanticClass,
    Refine,
    Sampling,
    Strategy,
)
from nabla_agents.bench import Arm, Bench, BenchSettings, Question, Report, Task, run
from nabla_agents.bench.report import follow

THINGS = ("lamps", "chairs", "pencils", "mugs", "candles", "scarves", "clocks", "vases", "baskets", "brushes", "towels")
NAMES = ("Maria Lopez", "Jonas Weber", "Aiko Tanaka", "Ines Costa", "Tom Baker", "Lena Vogt", "Omar Haddad")
OPENINGS = (
    "Hello, this is {name}. Please send me {items}.",
    "Dear shop, I would like {items}.",
    "Could I get {items}?",
)
ITEMS = (
    "{n} {thing} at {price} euros each",
    "{n} {thing} ({price} euros each)",
    "{n} {thing} for {price} euros apiece",
)
ENDS = ("I know that shipping is {shipping} euros.", "Shipping: {shipping} euros.", "Delivery costs {shipping} euros.")
ASKED = (
    "Extract the order from this letter. The total is the sum of quantity times unit price over all items, and "
    "shipping.\n\n{letter}"
)


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


OPTIONS = ChatOptions.read(
    response_format={"type": "json_schema", "json_schema": {"name": "Order", "schema": Order.model_json_schema()}}
)
GRAMMAR = Grammar.json(Order.model_json_schema(), refine=True)

ARMS: dict[str, Strategy] = {
    "greedy": Greedy(),
    "refine": Refine(n=8),
    "refine-keep": Refine(n=8, keep=True),
    "best-of-8-stops": BestOfN(n=8, width=1),
    "nabla": Nabla(),
    "nabla-told": Nabla(direction=FeedbackDirection()),
}
PAIRS = (
    ("nabla", "best-of-8-stops"),
    ("refine-keep", "refine"),
    ("nabla-told", "refine"),
    ("nabla-told", "nabla"),
)


class Extraction(Bench):
    """A comparison whose answers keep to the schema, refined within it."""

    def asked(self, question: Question) -> list[Message]:
        return OPTIONS.with_schema([Message("user", question.text)])

    @property
    def sampling(self) -> Sampling:
        return super().sampling.replace(grammar=GRAMMAR)


def letters(count: int, seed: int) -> list[Question]:
    draw = random.Random(seed)
    return [letter(draw) for _ in range(count)]


def letter(draw: random.Random) -> Question:
    things = draw.sample(THINGS, draw.choice((2, 3)))
    wanted = [(draw.randint(2, 20), thing, draw.randint(2, 60)) for thing in things]
    shipping, name = draw.randint(3, 15), draw.choice(NAMES)
    items = [draw.choice(ITEMS).format(n=n, thing=thing, price=price) for n, thing, price in wanted]
    listed = ", ".join(items[:-1]) + " and " + items[-1]
    opening, end = draw.choice(OPENINGS), draw.choice(ENDS).format(shipping=shipping)
    text = f"{opening.format(name=name, items=listed)} {end} {name}"
    numbers = [(n, price) for n, _, price in wanted], shipping, sum(n * price for n, _, price in wanted) + shipping
    return Question(ASKED.format(letter=text), functools.partial(right, numbers))


def right(numbers: tuple[list[tuple[int, int]], int, int], texts: Sequence[str]) -> list[bool]:
    return [_read(text) == numbers for text in texts]


def _read(text: str) -> tuple[list[tuple[int, int]], int, int] | None:
    try:
        order = Order.model_validate_json(text)
    except ValidationError:
        return None
    return [(item.quantity, item.unit_price) for item in order.items], order.shipping, order.total


def extraction(model: str, dtype: str, settings: BenchSettings, arms: Sequence[str]) -> Extraction:
    return Extraction(
        [Arm(name, ARMS[name], None if name == "greedy" else "class") for name in arms],
        model=LanguageModel.from_pretrained(model, dtype=dtype),
        rewards={"class": 10.0 * PydanticClass(Order)},
        settings=settings,
        task=Task("orders out of letters", letters, lambda n: {}, ""),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, GGUF file or hub id of a chat model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--letters", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--out", type=Path, default=Path("extraction"))
    options = parser.parse_args()
    settings = BenchSettings(
        problems=options.letters,
        seeds=(options.seed,),
        budgets=(Budget(rollouts=options.rollouts),),
        max_tokens=200,
        batch=options.batch,
    )
    arms = options.arms.split(",")
    bench = extraction(options.model, options.dtype, settings, arms)
    command = f"python benchmarks/extraction.py {Path(options.model).name} --dtype {options.dtype}"
    report = Report(command, {}, [pair for pair in PAIRS if {*pair} <= {*arms}])
    recipe = functools.partial(extraction, options.model, options.dtype, settings, arms)
    follow(run(bench, options.out, recipe=recipe), Console(), bench=bench, out=options.out, report=report)


if __name__ == "__main__":
    main()
