"""The oracle itself: it must see every kind of broken promise."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.crash.journal import Delivery, Identity, Journal

QUEUE = "q"
A, B, C = [Identity(1, n) for n in range(100) if Identity(1, n).is_persistent][:3]
TRANSIENT = next(Identity(1, n) for n in range(100) if not Identity(1, n).is_persistent)
OTHER = Identity(2, 0)


def journal(on_its_way_max: int = 0) -> Journal:
    """A, B, C and a transient one sent and confirmed; nothing delivered."""
    books = Journal({QUEUE: on_its_way_max})
    books.sending([QUEUE], books.identities(1, 100))
    books.confirm([A, B, C, TRANSIENT])
    return books


def deliveries(*identities: Identity, redelivered: bool = False) -> list[Delivery]:
    """Faithful deliveries."""
    return [Delivery(identity, identity.body, redelivered) for identity in identities]


def take(books: Journal, *got: Delivery) -> list[str]:
    """A consumer gets these from a running broker; what is wrong with that."""
    last: dict[int, int] = {}
    for delivery in got:
        books.delivered(QUEUE, delivery, last)
    return books.violations


# -- after a restart


def test_faithful_broker() -> None:
    assert journal().verify(QUEUE, deliveries(A, B, C), time.monotonic()).violations == []


@pytest.mark.parametrize(
    ("got", "complaint"),
    [
        (deliveries(A, C), f"{B} is lost"),
        (deliveries(A, C, B), f"{B} out of order"),
        (deliveries(A, B, B, C), f"{B} twice"),
        (deliveries(A, B, C, OTHER), f"{OTHER} is not expected here"),
        (deliveries(A, B, C, TRANSIENT), f"{TRANSIENT} is transient"),
        ([*deliveries(A, B), Delivery(C, C.body + b"x", False)], f"{C} has another body"),
        ([*deliveries(A, redelivered=True), *deliveries(B, C)], "1 flagged that were never"),
    ],
)
def test_broken_promise(got: list[Delivery], complaint: str) -> None:
    violations = journal().verify(QUEUE, got, time.monotonic()).violations
    assert any(complaint in text for text in violations), violations


def acknowledged() -> Journal:
    """The broker has read the ack of A, just now."""
    books = journal()
    books.acking(QUEUE, [A])
    books.acks_read(QUEUE, [A])
    return books


def test_acknowledged_message_comes_back() -> None:
    books = acknowledged()
    books.confirmed_by_disk(time.monotonic() + 1)
    late = books.verify(QUEUE, deliveries(A, B, C), time.monotonic() + 2).violations
    assert len(late) == 1 and "came back" in late[0]


def test_acknowledged_message_comes_back_later() -> None:
    books = acknowledged()
    assert books.verify(QUEUE, deliveries(B, C), time.monotonic()).violations == []
    late = books.verify(QUEUE, deliveries(A, B, C, redelivered=True), time.monotonic()).violations
    assert late == [
        f"{QUEUE}: {A} is not expected here",
        f"{QUEUE}: 1 flagged that were never delivered",
    ]


def test_ack_that_may_not_have_been_written_owes_nothing() -> None:
    books = acknowledged()
    books.confirmed_by_disk(time.monotonic())
    assert books.verify(QUEUE, deliveries(A, B, C), time.monotonic() + 9).violations == []


def test_committed_ack_has_no_window() -> None:
    books = journal()
    books.acking(QUEUE, [A])
    books.acks_committed(QUEUE, [A])
    violations = books.verify(QUEUE, deliveries(A, B, C), time.monotonic()).violations
    assert violations == [f"{QUEUE}: {A} came back, its ack was committed"]


def test_message_that_came_back_within_the_window_is_owed_again() -> None:
    books = acknowledged()
    now = time.monotonic()
    again = deliveries(A, B, C, redelivered=True)
    assert books.verify(QUEUE, deliveries(A, B, C), now).violations == []
    assert books.verify(QUEUE, again, now + 9).violations == []
    assert books.verify(QUEUE, again[1:], now + 9).violations == [f"{QUEUE}: {A} is lost"]


def test_ack_that_may_not_have_arrived_owes_nothing() -> None:
    for got in (deliveries(B, C), deliveries(A, B, C)):
        books = journal()
        books.acking(QUEUE, [A])
        assert books.verify(QUEUE, got, time.monotonic() + 1).violations == []


def test_delivered_message_without_its_flag() -> None:
    flagged = [*deliveries(A, redelivered=True), *deliveries(B, C)]
    for got, complaints in ((deliveries(A, B, C), 1), (flagged, 0)):
        books = journal()
        take(books, *deliveries(A))
        books.confirmed_by_disk(time.monotonic() + 1)
        violations = books.verify(QUEUE, got, time.monotonic() + 2).violations
        assert len(violations) == complaints


def test_messages_on_their_way_may_be_flagged() -> None:
    got = [*deliveries(A, redelivered=True), *deliveries(B, C)]
    assert journal(on_its_way_max=1).verify(QUEUE, got, time.monotonic()).violations == []


# -- while the broker runs


def test_faithful_deliveries() -> None:
    books = journal()
    assert take(books, *deliveries(A, B)) == []
    books.requeueing(QUEUE, [A])
    assert take(books, *deliveries(A, redelivered=True), *deliveries(C)) == []


@pytest.mark.parametrize(
    ("before", "got", "complaint"),
    [
        (lambda books: None, deliveries(OTHER), "is not expected here"),
        (lambda books: None, [Delivery(A, b"another", False)], "has another body"),
        (lambda books: None, deliveries(B, A), "out of order"),
        (lambda books: None, deliveries(A, redelivered=True), "is flagged, delivered 0 times"),
        (lambda books: take(books, *deliveries(A)), deliveries(A), "is delivered 2 times"),
        (
            lambda books: (take(books, *deliveries(A)), books.requeueing(QUEUE, [A])),
            deliveries(A),
            "is not flagged, delivered 1 times",
        ),
    ],
)
def test_unfaithful_deliveries(
    before: Callable[[Journal], object], got: list[Delivery], complaint: str
) -> None:
    books = journal()
    before(books)
    violations = take(books, *got)
    assert any(complaint in text for text in violations), violations
