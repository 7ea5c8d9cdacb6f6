"""Whose turn it is, by hand."""

from __future__ import annotations

import pytest

from nabla_agents.serve import ApiKey, digest
from nabla_agents.serve.admission import Admission, Ticket
from nabla_agents.serve.errors import Refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def granted(tickets: list[Ticket]) -> list[bool]:
    return [ticket.began is not None for ticket in tickets]


async def test_callers_take_turns_however_many_requests_they_have() -> None:
    admission = Admission(concurrent=1, queued=100)
    [running] = admission.enter("many", 1)
    waiting = [*admission.enter("many", 5), *admission.enter("few", 1), *admission.enter("other", 2)]
    order: list[str] = []
    while waiting:
        admission.leave(running)
        [running] = [ticket for ticket in waiting if ticket.began is not None]
        waiting.remove(running)
        order.append(running.caller)
    assert order == ["many", "few", "other", "many", "other", "many", "many", "many"]


async def test_a_request_of_several_answers_is_let_in_whole_or_not_at_all() -> None:
    admission = Admission(concurrent=2, queued=2)
    tickets = admission.enter("a", 4)
    assert granted(tickets) == [True, True, False, False]
    with pytest.raises(Refusal, match="2 answers wait already") as raised:
        admission.enter("a", 1)
    assert raised.value.status == 429
    assert raised.value.headers["Retry-After"] == "2"
    admission.leave(tickets[0])
    assert granted(tickets[1:]) == [True, True, False]
    with pytest.raises(Refusal):
        admission.enter("a", 2)
    assert len(admission.enter("a", 1)) == 1
    assert (admission.running, admission.waiting) == (2, 2)


async def test_one_caller_cannot_fill_the_queue_for_others() -> None:
    admission = Admission(concurrent=1, queued=10)
    admission.enter("first", 2)
    admission.enter("flood", 5)
    with pytest.raises(Refusal):
        admission.enter("flood", 1)
    assert len(admission.enter("late", 4)) == 4


async def test_who_leaves_the_queue_makes_room() -> None:
    admission = Admission(concurrent=1, queued=1)
    [running] = admission.enter("a", 1)
    [waiting] = admission.enter("a", 1)
    admission.leave(waiting)
    assert admission.waiting == 0
    [second] = admission.enter("b", 1)
    admission.leave(running)
    assert granted([second]) == [True]
    admission.leave(second)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_key_has_at_most_its_answers_at_a_time() -> None:
    key = ApiKey(id="a", sha256=digest("x"), concurrent=1)
    admission = Admission(concurrent=3, queued=10)
    mine = admission.enter("a", 2, key)
    others = admission.enter("b", 2)
    assert granted(mine + others) == [True, False, True, True]
    admission.leave(others[0])
    assert granted(mine) == [True, False]  # there is room, not for this key
    admission.leave(mine[0])
    assert granted(mine[1:]) == [True]


async def test_one_caller_has_its_share_of_the_places_and_others_the_rest() -> None:
    admission = Admission(concurrent=4, queued=10, share=3)
    mine = admission.enter("a", 5)
    assert granted(mine) == [True, True, True, False, False]
    assert granted(admission.enter("b", 2)) == [True, False]
    admission.leave(mine[0])
    assert granted(mine[1:]) == [True, True, True, False]


async def test_retry_after_follows_how_long_answers_take() -> None:
    clock = Clock()
    admission = Admission(concurrent=1, queued=2, clock=clock)
    for _ in range(60):
        [ticket] = admission.enter("a", 1)
        clock.now += 10
        admission.leave(ticket)
    admission.enter("a", 3)
    assert admission.retry_after == pytest.approx(30, rel=0.05)
