"""The final answer of a completion, as voting needs it."""

from __future__ import annotations

import re

# Possessive quantifiers: the time is linear in the text, whatever it contains.
_GAP = r"[*_ \t]*+"  # spaces and Markdown emphasis, as in `**Answer:** 7`
_MARKED = (
    re.compile(r"####[ \t]*+(\S[^\n]*)"),
    re.compile(rf"(?i)\banswer\b{_GAP}(?:is\b{_GAP}[:=]?|[:=]){_GAP}(\S[^\n]*)"),
)
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-−])?(?:\d[\d,]*+(?:\.\d+)?|(?<!\w)\.\d+)")  # a minus after a digit subtracts


_BRACE = re.compile(r"(\\boxed\{)|\\.|[{}]", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
_HEDGE = re.compile(r"(?i)\b(?:or|either|maybe)\b")
_DENIAL = re.compile(r"(?i)(?:\bnot|n['’]t)\b")
_DOLLAR = re.compile(r"(?<!\\)\$")
_SENTENCE_END = re.compile(r"(?<!\\)[.;!?](?=\s)")
_OTHER_NUMBER = re.compile(r"[\s$({*_]*[-−+]?\\?\$?[\d.,]*\d[\s$)}*_.]*")  # all of a second sentence, as in `42. 43`
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_BESIDE_A_BOX = re.compile(  # `\boxed{42} or \boxed{43}`, of one line
    r"\}[ \t$,;/&]*(?:\\?text\s*\{\s*)?(?:or|and)?[ \t$,;/&}]*\\boxed\{"
)


def extract_answer(text: str) -> str | None:
    r"""The last marked answer (`\boxed{}`, `####`, `Answer:`), else the last number, in a normal form; None if neither.

    Numbers lose thousands separators and needless zeros, and Unicode digits and signs become ASCII, so that equal
    answers vote together.
    """
    boxed = _boxed(text)
    if boxed is not None and (answer := _normal(text[slice(*boxed[-1])])):
        return answer
    for pattern in (*_MARKED, _NUMBER):
        if answers := [answer for answer in map(_normal, pattern.findall(text)[-1:]) if answer]:
            return answers[0]
    return None


def stated_answer(text: str) -> str | None:
    r"""The last answer that the text commits itself to, as written: boxed, after `####` or `answer is`; without such a
    mark, the whole of a text that is a mere expression, else the last number. None without one, for a hedge, and for
    a last number that is denied.
    """
    boxed = _boxed(text)
    marked = (pattern.findall(text)[-1:] for pattern in _MARKED)
    passage = (
        text[slice(*boxed[-1])] if boxed is not None else next((answers[0] for answers in marked if answers), None)
    )
    if passage is None and len(text) <= 200 and "\n" not in text.strip() and not _WORDS.search(text):
        passage = text
    if passage is not None:
        whole = passage.strip("*_` \t\r\n")
        end_of_sentence = _SENTENCE_END.search(whole)
        answer = (whole if end_of_sentence is None else whole[: end_of_sentence.start()]).strip("*_` \t\r\n")
        if end_of_sentence is not None and _is_another(
            whole[end_of_sentence.end() :], listed=end_of_sentence[0] == ";"
        ):
            return None
        formula = _DOLLAR.search(answer, 1) if answer.startswith("$") else None
        if formula is not None and _is_another(answer[formula.end() :], listed=True):
            return None
        answer = answer if formula is None else answer[: formula.end()]
        return answer if answer and not _HEDGE.search(answer) else None
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    end = numbers[-1].start()
    before = text[numbers[-2].end() : end] if len(numbers) > 1 else ""
    if len(before) < 20 and _HEDGE.search(before):
        return None
    return None if _DENIAL.search(_SENTENCE_END.split(text[max(0, end - 20) : end])[-1]) else numbers[-1][0]


def _is_another(rest: str, *, listed: bool) -> bool:
    """Whether what follows an answer is one more: a number, or in a list any formula."""
    if _OTHER_NUMBER.fullmatch(rest):
        return True
    return listed and any(c.isdecimal() for c in rest) and _WORD.search(_COMMAND.sub(" ", rest)) is None


def rival_answer(text: str) -> str | None:
    r"""What stands beside the last box as one more answer: 42 of `\boxed{42} or \boxed{43}`, 43 of `\boxed{42}{43}`."""
    boxed = _boxed(text)
    if boxed is None:
        return None
    start, end = boxed[-1]
    if text[end + 1 : end + 2] == "{":
        return text[end + 2 : end + 42]
    before = next((box for box in reversed(boxed[:-1]) if box[1] < start), None)
    beside = before is not None and _BESIDE_A_BOX.fullmatch(text, before[1], start) is not None
    return text[slice(*before)] if before is not None and beside else None


def _boxed(text: str) -> list[tuple[int, int]] | None:
    r"""Where the content of each `\boxed{}` stands that is closed, however many braces are inside; None without any."""
    open_: list[int | None] = []  # where the content of each open brace starts, if it is a box
    spans: list[tuple[int, int]] = []
    for brace in _BRACE.finditer(text):
        if brace[1]:
            open_.append(brace.end())
        elif brace[0] == "{":
            open_.append(None)
        elif brace[0] == "}" and open_ and (start := open_.pop()) is not None:
            spans.append((start, brace.start()))
    return spans or None


def _normal(answer: str) -> str:
    decoration = "*_`$ \t\r"
    answer = answer.strip(decoration).rstrip(".").strip(decoration)
    if not _NUMBER.fullmatch(answer):
        return " ".join(answer.casefold().split())
    digits = "".join(str(int(c)) if c.isdecimal() else c for c in answer.replace(",", "").replace("−", "-"))
    whole, _, part = digits.lstrip("-").partition(".")
    value = ((whole.lstrip("0") or "0") + "." + part.rstrip("0")).rstrip(".")
    return "-" + value if digits.startswith("-") and value != "0" else value
