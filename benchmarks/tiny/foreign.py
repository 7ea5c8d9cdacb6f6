"""Text that says nothing about the task: what an agent's long prompt is to a model that knows one thing only."""

import json
from random import Random
from typing import Final

from nabla_agents.tiny.word_problems import problems

_COMMON: Final = (
    "the of and a to in is you that it he was for on are as with his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she many some "
    "so these would other into has more two like him see time could no make than first been its who now people my made "
    "over did down only way find use may water long little very after words called just where most know user question "
    "answer step line please help careful work show think last end form number problem word finish brief tool function "
    "call return value list text model context information below given query system message result example must"
)
_ONSETS: Final = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sl sp st t th tr v w"
_VOWELS: Final = "a e i o u ai ea ee ie oo ou y"
_CODAS: Final = ("", "", "n", "r", "l", "s", "t", "nd", "st", "ng", "ck", "m", "p")
_ENDINGS: Final = (".", ".", ".", ".", ",", ";", ":", "!", "?")
_OTHER: Final = "äöüßéèñçøåšžłαβγδжшюя中文日本語한국العربהית₀½×÷≤≥→∇π–—…“”«»€£🙂🚀"


def foreign_text(random: Random, characters: int) -> str:
    """About so many characters of paragraphs, lists, tables, code, JSON and numbers, with no question to answer."""
    parts: list[str] = []
    kinds = (_prose, _prose, _prose, _listing, _code, _data, _numbers, _stories, _strange)
    while sum(map(len, parts)) < characters:
        parts.append(random.choice(kinds)(random))
    return "\n\n".join(parts)[:characters]


def _word(random: Random) -> str:
    if random.random() < 0.5:
        return random.choice(_COMMON.split())
    syllables = range(random.randint(1, 3))
    parts = (_ONSETS.split(), _VOWELS.split(), _CODAS)
    return "".join(random.choice(part) for _ in syllables for part in parts)


def _sentence(random: Random) -> str:
    words = [_word(random) for _ in range(random.randint(3, 16))]
    if random.random() < 0.25:
        words[random.randrange(len(words))] = str(random.randint(0, 9999))
    return " ".join(words).capitalize() + random.choice(_ENDINGS)


def _prose(random: Random) -> str:
    return " ".join(_sentence(random) for _ in range(random.randint(2, 8)))


def _listing(random: Random) -> str:
    mark = random.choice(("- ", "* ", "# ", "> ", "| "))
    return "\n".join(mark + _sentence(random) for _ in range(random.randint(2, 6)))


def _code(random: Random) -> str:
    lines = [f"def {_word(random)}({_word(random)}, {_word(random)}={random.randint(0, 99)}):"]
    for _ in range(random.randint(1, 6)):
        lines.append(
            f"    {_word(random)}.{_word(random)}({_word(random)!r}) {random.choice('+-*/=<')} {_word(random)}"
        )
    return "\n".join(lines)


def _data(random: Random) -> str:
    value = {
        _word(random): random.choice((random.randint(0, 999), _word(random), True, None, [1, 2], {})) for _ in range(5)
    }
    return json.dumps(
        {"type": "function", "function": {"name": _word(random), "description": _sentence(random), **value}}
    )


def _numbers(random: Random) -> str:
    return random.choice((" ", ", ", " | ", "\n")).join(
        str(random.randint(0, 10 ** random.randint(1, 5))) for _ in range(random.randint(4, 30))
    )


def _stories(random: Random) -> str:
    """Sentences of word problems, in no order."""
    text = " ".join(problem.question for problem in problems(2, seed=random.getrandbits(63)))
    sentences = [sentence for sentence in text.split(". ") if "?" not in sentence]
    return ". ".join(random.sample(sentences, len(sentences))) + "."


def _strange(random: Random) -> str:
    return "".join(random.choice(_OTHER) if random.random() < 0.7 else " " for _ in range(random.randint(10, 60)))
