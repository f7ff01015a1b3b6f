"""The book of a stream notices each promise that is broken."""

from __future__ import annotations

import pytest

from tests.crash.journal import Identity, Journal
from tests.crash.streaming import Streaming

STREAM = "crash.stream"


def ids(*sequences: int) -> list[Identity]:
    return [Identity(0, sequence) for sequence in sequences]


def found(sequences: list[int], first: int = 0) -> dict[int, Identity]:
    return dict(enumerate(ids(*sequences), first))


def book() -> Streaming:
    """0 to 3 were verified before; then 4 to 8 were sent, 4 to 6 confirmed, and 5 was read at 5."""
    journal = Journal({STREAM: 0})
    streaming = Streaming(journal, STREAM, publisher=1)
    journal.sending([STREAM], ids(*range(4)))
    assert streaming.judge(found([0, 1, 2, 3])) == []
    journal.sending([STREAM], ids(*range(4, 9)))
    journal.confirm(ids(4, 5, 6))
    streaming.note(5, Identity(0, 5), journal.violations)
    return streaming


@pytest.mark.parametrize(
    "sequences", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 8]], ids=["all", "and more"]
)
def test_it_is_content(sequences: list[int]) -> None:
    assert book().judge(found(sequences)) == []
    assert book().judge(found(sequences[2:], first=2)) == []


@pytest.mark.parametrize(
    ("there", "text"),
    [
        ({**found([0, 1, 2, 3, 4, 5])}, "0.6 is lost"),
        ({**found([0, 1, 2, 3, 4])}, "[5] are gone"),
        ({**found([0, 1, 2, 3, 4, 5, 6, 6])}, "0.6 twice"),
        ({**found([0, 1, 2, 3, 3, 4, 5, 6])}, "0.3 twice"),
        ({**found([0, 1, 2, 3, 4, 5, 6, 9])}, "0.9 is not expected here"),
        ({**found([0, 1, 2, 4, 5, 6])}, "0.4 is at 3, where 0.3 was"),
        ({**found([0, 1, 2, 3, 5, 4, 6])}, "0.5 was"),
        ({**found([0, 1, 2, 3]), **found([4, 5, 6], first=5)}, "have gaps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_notices(there: dict[int, Identity], text: str) -> None:
    assert any(text in violation for violation in book().judge(there))
