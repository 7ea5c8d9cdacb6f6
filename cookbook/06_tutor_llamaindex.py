"""A math tutor in LlamaIndex: a query engine over a textbook, whose answers are refined, checked, and cite their page.

The query finds an exercise, the model works it out from what was found, and two tools judge the working: the calculator
each equation, and `numbers_of_source` whether every number comes from the cited text or from a line before. What
retrieval and synthesis ask is answered by one completion; only the answer that the reader sees is refined.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id), which also reads the question: the embedded
one reads what was found and nothing else. Take an index with embeddings for a book of your own.
"""

import os
import re
from pathlib import Path

from llama_index.core import PromptTemplate, SimpleKeywordTableIndex
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index.llms.nabla import NablaLLM, NablaQueryEngine
from nabla_agents import ArithmeticSteps, BestOfN, Budget, Engine, Score, Span


def sections(book: str) -> list[TextNode]:
    """One node for each section; its place in the book is metadata, which citations are made of."""
    nodes = []
    for chapter in re.split(r"^# ", book, flags=re.MULTILINE)[1:]:
        title, *parts = re.split(r"^## ", chapter, flags=re.MULTILINE)
        for part in parts:
            section, _, text = part.partition("\n")
            place = {"chapter": title.strip(), "section": section.strip()}
            nodes.append(TextNode(text=text.strip(), metadata=place, excluded_llm_metadata_keys=[*place]))
    return nodes


def numbers_of_source(question: str, answer: str, sources: list[NodeWithScore]) -> Score:
    """Whether each number that the working starts from stands in the source, or is a result of the line before."""
    known = re.findall(r"\d+", " ".join(source.get_content() for source in sources))
    unused = iter([number for number in known if number not in re.findall(r"\d+", answer)])
    lines = [*re.finditer(r"\b(\d+) (?:[-+*/]|\\times) (\d+) = (\d+)", answer)]
    if not lines:
        return Score(-1.0, verdict=-1.0, verified=False, explanation="no working: there is no equation")
    strange = []
    for line in lines:
        for i in (1, 2):
            if line[i] not in known:
                strange.append(Span(*line.span(i), -1.0, next(unused, None), "in no source", credit=20.0))
        known.append(line[3])
    value = -1.0 if strange else 1.0
    why = (
        "in no source: " + ", ".join(answer[s.start : s.end] for s in strange)
        if strange
        else "numbers as in the source"
    )
    return Score(value, verdict=value, verified=not strange, spans=tuple(strange), explanation=why)


nodes = sections(Path(__file__).with_name("textbook.md").read_text(encoding="utf-8"))
rules = {node.metadata["chapter"]: node.text for node in nodes if node.metadata["section"] == "Rule"}
exercises = [node for node in nodes if node.metadata["section"] != "Rule"]

if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), strategy=BestOfN(n=4, width=1))
    template = PromptTemplate("{context_str}\n\n{query_str}\nWrite an equation a line, and the answer last.")
else:
    engine = Engine.tiny(reward=ArithmeticSteps(), budget=Budget(rollouts=8))
    template = PromptTemplate("{context_str}")
llm = NablaLLM(engine=engine, max_tokens=256)
index = SimpleKeywordTableIndex(exercises, llm=llm)
tutor = NablaQueryEngine(
    index.as_query_engine(llm=llm, text_qa_template=template, num_chunks_per_query=1), verifier=numbers_of_source
)

for asked in ["Ella and her stamps?", "How many stickers has Sara?", "What is a prime?"]:
    response = tutor.query(asked)
    print(f"asked: {asked}")
    if not response.source_nodes:
        print("The textbook has nothing on this.")
        continue
    found, [source] = response.metadata["nabla"], response.source_nodes
    chapter, section = source.metadata["chapter"], source.metadata["section"]
    print(f"{response}\n[{chapter}, {section.lower()}] {rules[chapter].partition('.')[0]}.")
    print(f"verified: {found['verified']} - {found['explanation']}; changes: {found['revisions']}\n")

# Prints:
# asked: Ella and her stamps?
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 3
# 3 + 77 = 80
# Answer: 80
# [Chapter 2. Times as many, exercise 2.1] "Three times as many" multiplies what there was just before.
# verified: True - 5 equations right; numbers as in the source; changes: 2
#
# asked: How many stickers has Sara?
# 14 * 4 = 56
# 56 + 83 = 139
# 139 + 70 = 209
# 209 + 223 = 432
# Answer: 432
# [Chapter 2. Times as many, exercise 2.2] "Three times as many" multiplies what there was just before.
# verified: True - 4 equations right; numbers as in the source; changes: 1
#
# asked: What is a prime?
# The textbook has nothing on this.
