"""Caches that share a bound: nobody keeps all, and who ends gives back."""

import pytest

from qlog.server.amqp.budget import Budget
from qlog.server.amqp.recognise import BUDGET, FORM_BYTES, PublishForms
from tests.server.amqp.conversation import CLOSE, hear, message, publish, running


class Cache:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = 0

    def add(self, octets: int) -> None:
        self.budget.charge(self, octets)
        self.held += octets

    def forget(self) -> None:
        self.held = 0


def test_the_cache_that_was_emptied_longest_ago_is_emptied() -> None:
    budget = Budget(100)
    first, second, third = (Cache(budget) for _ in range(3))
    for cache in (first, second, third):
        cache.add(30)
    first.add(20)
    assert (first.held, second.held, third.held) == (20, 30, 30)
    third.add(30)
    assert (first.held, second.held, third.held) == (20, 0, 60)
    assert budget.bytes_held == 80


def test_one_cache_alone_is_emptied_too() -> None:
    budget = Budget(100)
    cache = Cache(budget)
    for _ in range(50):
        cache.add(30)
        assert cache.held == budget.bytes_held <= 100


def test_what_is_larger_than_all_is_held_alone() -> None:
    budget = Budget(100)
    cache, other = Cache(budget), Cache(budget)
    other.add(50)
    cache.add(500)
    assert (cache.held, other.held) == (500, 0)
    other.add(10)
    assert (cache.held, other.held, budget.bytes_held) == (0, 10, 10)


def test_forms_of_many_connections_are_bounded_and_given_back() -> None:
    budget = Budget(20 * FORM_BYTES)
    connections = [PublishForms(budget) for _ in range(8)]
    for number in range(40):
        for forms in connections:
            forms.learn(publish(key=f"key-{number}"))
            assert budget.bytes_held <= budget.bytes_max
    assert 10 < sum(len(forms.by_frame) for forms in connections) <= 20
    for forms in connections:
        forms.close()
    assert budget.bytes_held == 0


@pytest.mark.parametrize("end", ["close", "lost"])
def test_a_connection_that_ends_gives_back(end: str) -> None:
    before = BUDGET.bytes_held
    connection = running()
    for number in range(30):
        hear(connection, message(b"x", b"\x08\x00\x05", f"key-{number}"))
    assert BUDGET.bytes_held > before + 30 * FORM_BYTES
    if end == "close":
        hear(connection, CLOSE)
    else:
        connection.end()
    assert BUDGET.bytes_held == before
    assert not connection._forms.by_frame and not len(connection._forms.shapes)
