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
from qlog.server.amqp.values import Table
from tests.server.amqp.conversation import hear, longstr, message, running
from tests.server.amqp.test_connection import told
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
        lambda first, last, priority: Properties(
            headers={"args": "x" * first, "n": 1, "kwargs": "y" * last}, priority=priority
        ),
        st.integers(0, 99),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    st.builds(
        Properties, reply_to=st.sampled_from(["amq.rabbitmq.reply-to", "amq.gen-" + "x" * 13])
    ),
)
RAW = (ALIKE | PROPERTIES).map(encode_properties) | st.sampled_from(UNCLEAN)


# Where an octet is changed, and the bits that are: often few, so that lengths change a little.
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from([1, 2, 4, 16, 128]) | st.integers(1, 255)),
    max_size=3,
)


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


def test_celery_tasks_with_other_arguments_are_recognised() -> None:
    connection = running()
    sent = []
    for number in range(100):
        assert CELERY.headers is not None
        headers = CELERY.headers | {"argsrepr": "1" * number, "kwargsrepr": "2" * (number % 7)}
        task = replace(CELERY, headers=headers, priority=number % 3)
        raw = encode_properties(task)
        traits, _ = examine(raw)
        sent.append(Understood("k", raw, 1, b"x", traits))
        assert heard(connection, [message(b"x", raw)]) == (sent[-1:], False)
    assert connection._forms.shapes.recognised >= 90
    octets = b"".join(message(b"x", one.properties) for one in sent)
    assert heard(connection, [octets]) == (sent, False)


@given(MUTATIONS, st.integers(0, 30), st.integers(0, 3))
def test_what_was_learnt_changes_nothing(
    mutations: list[tuple[int, int]], length: int, missing: int
) -> None:
    """Octets that are nearly as expected are understood as by a connection that knows nothing."""
    knowing, ignorant = running(), running()
    for number in range(12):
        raw = encode_properties(Properties(headers={"a": "x" * number, "t": True}, priority=1))
        hear(knowing, message(b"body", raw))
    assert knowing._forms.shapes.of(1).varying_count and knowing._forms.shapes.recognised
    raw = encode_properties(Properties(headers={"a": "x" * length, "t": True}, priority=1))
    octets = bytearray(message(b"body", raw) * 2)
    for at, octet in mutations:
        octets[at % len(octets)] ^= octet
    data = bytes(octets[: len(octets) - missing])
    assert told(hear(knowing, data)) == told(hear(ignorant, data))


def test_every_octet_is_looked_at() -> None:
    """As above, for each octet of a message of a varying shape, and of what is behind it."""
    raw = encode_properties(Properties(headers={"a": "abcd", "t": True}))
    whole = message(b"body", raw)
    for at in range(len(whole)):
        knowing, ignorant = running(), running()
        for number in range(12):
            headers: Table = {"a": "x" * (20 + number), "t": True}
            hear(knowing, message(b"body", encode_properties(Properties(headers=headers))))
        assert knowing._forms.shapes.of(1).varying_count
        data = whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :] + whole
        assert told(hear(knowing, data)) == told(hear(ignorant, data))


def test_a_frame_longer_than_was_agreed_is_not_recognised() -> None:
    """A varying shape takes longer headers than the one it was learnt of: not over frame_max."""
    connection = running()
    for number in range(12):
        hear(connection, message(b"x", encode_properties(Properties(headers={"a": "x" * number}))))
    assert connection._forms.shapes.of(1).varying_count
    frame_max = connection._payload_bytes_max + 8
    fits = Properties(headers={"a": "x" * (frame_max - 8 - 12 - 2 - 4 - 7)})
    (publishes,) = hear(connection, message(b"x", encode_properties(fits)))
    assert isinstance(publishes, Publishes)
    larger = Properties(headers={"a": "x" * (frame_max - 8 - 12 - 2 - 4 - 7 + 1)})
    (violation, *_) = hear(connection, message(b"x", encode_properties(larger)))
    assert isinstance(violation, Violation) and violation.error.code == 501


def test_priorities_and_expirations_are_recognised() -> None:
    connection = running()
    for number in range(100):
        raw = encode_properties(Properties(priority=number, expiration=f"{10000 + number}"))
        ((understood, *_), _) = heard(connection, [message(b"x", raw)])
        assert understood.traits == Traits(False, number, 10000 + number, 0)
    assert connection._forms.shapes.recognised >= 97
    assert len(connection._forms.shapes) == 1
