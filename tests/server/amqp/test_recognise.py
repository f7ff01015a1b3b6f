"""What is recognised is what walking it would have found, however the octets are cut."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp.connection import Connection, Publishes, Violation
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.properties import Properties, Traits, encode_properties, examine
from tests.server.amqp.conversation import hear, longstr, message, running
from tests.server.amqp.test_shapes import CELERY, PROPERTIES

# Headers that are written in another way, or refused.
UNCLEAN = [
    b"\x20\x00" + longstr(b"\x01kL" + struct.pack(">q", 5)),
    b"\x20\x00" + longstr(b"\x01kt\x01\x01kt\x00"),
    b"\x20\x00" + longstr(b"\x01kA" + longstr(b"t\x02")),
    b"\x20\x00" + longstr(b"\x05retryt\x02"),
    b"\x20\x02" + longstr(b""),
    b"\x20\x00" + longstr(b"\x01kd\x7f\xf8\x00\x00\x00\x00\x00\x00"),
]
# Headers that differ in one property, or in nothing.
ALIKE = st.one_of(
    st.sampled_from([CELERY, Properties(delivery_mode=2), Properties()]),
    st.builds(Properties, priority=st.integers(0, 9), message_id=st.sampled_from(["aa", "bb"])),
    st.builds(Properties, expiration=st.sampled_from(["1000", "2000", "x000"])),
    st.builds(Properties, headers=st.builds(lambda flag: {"retry": flag}, st.booleans())),
    st.builds(
        Properties, reply_to=st.sampled_from(["amq.rabbitmq.reply-to", "amq.gen-" + "x" * 13])
    ),
)
RAW = (ALIKE | PROPERTIES).map(encode_properties) | st.sampled_from(UNCLEAN)


class Message(NamedTuple):
    key: str
    raw: bytes
    body: bytes


MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["a", "b", "key"]),
        RAW,
        st.sampled_from([b"", b"x", b"other", b"\xce" * 9]),
    ),
    max_size=12,
).flatmap(lambda messages: st.permutations(messages * 3))


class Understood(NamedTuple):
    key: str
    properties: bytes
    size: int
    body: bytes
    traits: Traits


def expected_of(messages: list[Message]) -> tuple[list[Understood], bool]:
    """What walking each by itself gives, up to the first that is refused; whether one is."""
    understood: list[Understood] = []
    for key, raw, body in messages:
        try:
            traits, clean = examine(raw)
        except HardError:
            return understood, True
        understood.append(Understood(key, clean, len(body), body, traits))
    return understood, False


def heard(connection: Connection, pieces: list[bytes]) -> tuple[list[Understood], bool]:
    understood: list[Understood] = []
    refused = False
    for piece in pieces:
        for event in hear(connection, piece):
            if isinstance(event, Violation):
                assert event.error.code == 541
                refused = True
                continue
            assert isinstance(event, Publishes) and event.channel == 1
            for run in event.runs:
                columns = zip(run.methods, run.envelopes, run.bodies, strict=True)
                for method, envelope, body in columns:
                    assert envelope.routing_key == method.routing_key
                    assert envelope == type(envelope).pack(*envelope[:4])
                    understood.append(
                        Understood(
                            method.routing_key,
                            envelope.properties,
                            envelope.body_size,
                            body,
                            run.traits,
                        )
                    )
    return understood, refused


def cut(octets: bytes, steps: list[int]) -> list[bytes]:
    """The octets in pieces of these sizes, over and over."""
    pieces = []
    at = turn = 0
    while at < len(octets):
        step = steps[turn % len(steps)]
        pieces.append(octets[at : at + step])
        at += step
        turn += 1
    return pieces


@given(MESSAGES, st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_recognised_is_walked(messages: list[Message], steps: list[int]) -> None:
    octets = b"".join(message(body, raw, key) for key, raw, body in messages)
    expected = expected_of(messages)
    connection = running()
    assert heard(connection, [octets]) == expected
    if not expected[1]:  # once more, with all that is known by now
        assert heard(connection, [octets]) == expected
    assert heard(running(), cut(octets, steps)) == expected


def test_celery_tasks_are_recognised() -> None:
    connection = running()
    for number in range(100):
        task = replace(CELERY, correlation_id=f"{number:036}")
        hear(connection, message(b"x", encode_properties(task)))
    assert connection._forms.shapes.recognised >= 97
    assert len(connection._forms.shapes) == 1


def test_priorities_and_expirations_are_recognised() -> None:
    connection = running()
    for number in range(100):
        raw = encode_properties(Properties(priority=number, expiration=f"{10000 + number}"))
        ((understood, *_), _) = heard(connection, [message(b"x", raw)])
        assert understood.traits == Traits(False, number, 10000 + number, 0)
    assert connection._forms.shapes.recognised >= 97
    assert len(connection._forms.shapes) == 1
