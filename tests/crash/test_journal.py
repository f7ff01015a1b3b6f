"""The oracle itself: it must see every kind of broken promise."""

from __future__ import annotations

import time

import pytest

from tests.crash.journal import Delivery, Identity, Journal

QUEUE = "q"
A, B, C = [Identity(1, n) for n in range(100) if Identity(1, n).is_persistent][:3]
TRANSIENT = next(Identity(1, n) for n in range(100) if not Identity(1, n).is_persistent)
OTHER = Identity(2, 0)


def journal() -> Journal:
    """A, B, C and a transient one sent and confirmed; nothing delivered."""
    books = Journal([QUEUE])
    books.sending(1, [QUEUE], 100)
    books.confirm([A, B, C, TRANSIENT])
    return books


def deliveries(*identities: Identity, redelivered: bool = False) -> list[Delivery]:
    """Faithful deliveries."""
    return [Delivery(identity, identity.body, redelivered) for identity in identities]


def test_faithful_broker() -> None:
    assert journal().verify(QUEUE, deliveries(A, B, C), time.monotonic()).violations == []


@pytest.mark.parametrize(
    ("got", "complaint"),
    [
        (deliveries(A, C), f"{B} is lost"),
        (deliveries(A, C, B), f"{B} out of order"),
        (deliveries(A, B, B, C), f"{B} twice"),
        (deliveries(A, B, C, OTHER), f"{OTHER} was never sent here"),
        (deliveries(A, B, C, TRANSIENT), f"{TRANSIENT} is transient"),
        ([*deliveries(A, B), Delivery(C, C.body + b"x", False)], f"{C} has another body"),
    ],
)
def test_broken_promise(got: list[Delivery], complaint: str) -> None:
    violations = journal().verify(QUEUE, got, time.monotonic()).violations
    assert any(complaint in text for text in violations), violations


def test_acknowledged_message_comes_back() -> None:
    books = journal()
    books.acking(QUEUE, [A])
    books.acks_read(QUEUE, [A])
    now = time.monotonic()
    assert books.verify(QUEUE, deliveries(B, C), now).violations == []
    late = books.verify(QUEUE, deliveries(A, B, C), now + 1).violations
    assert len(late) == 1 and "came back" in late[0]


def test_message_that_came_back_within_the_window_is_owed_again() -> None:
    books = journal()
    books.acking(QUEUE, [A])
    books.acks_read(QUEUE, [A])
    now = time.monotonic()
    assert books.verify(QUEUE, deliveries(A, B, C), now).violations == []
    assert books.verify(QUEUE, deliveries(A, B, C), now + 9).violations == []
    assert books.verify(QUEUE, deliveries(B, C), now + 9).violations == [f"{QUEUE}: {A} is lost"]


def test_ack_that_may_not_have_arrived_owes_nothing() -> None:
    books = journal()
    books.acking(QUEUE, [A])
    for got in (deliveries(B, C), deliveries(A, B, C)):
        assert books.verify(QUEUE, got, time.monotonic() + 1).violations == []


def test_delivered_message_without_its_flag() -> None:
    books = journal()
    books.delivered(QUEUE, [A])
    late = time.monotonic() + 1
    assert len(books.verify(QUEUE, deliveries(A, B, C), late).violations) == 1
    flagged = [*deliveries(A, redelivered=True), *deliveries(B, C)]
    assert books.verify(QUEUE, flagged, late).violations == []
