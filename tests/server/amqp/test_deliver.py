"""Deliveries in bulk are the octets of deliveries one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import deliver, spec
from qlog.server.amqp.deliver import OWN_BUFFER_BYTES_MIN, DeliveryEncoder
from qlog.server.amqp.envelope import Envelope
from tests.server.amqp.conversation import running

_BODIES = st.binary(max_size=20) | st.sampled_from([4088, 4089, 20_000]).map(bytes)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(_BODIES, min_size=1, max_size=4))),
    st.booleans(),
    st.sampled_from([0, 4096, 131072]),
    st.integers(1, 2**63),
)
def test_bulk_is_one_by_one(
    groups: list[tuple[str, list[bytes]]], redelivered: bool, frame_max: int, first_tag: int
) -> None:
    connection = running(frame_max or 131072)
    connection.frame_max = frame_max
    envelopes: list[Envelope] = []
    bodies: list[bytes] = []
    expected = b""
    for key, group in groups:
        by_size: dict[int, Envelope] = {}
        for octets in group:
            size = len(octets)
            envelope = by_size.setdefault(size, Envelope.pack("x", key, b"\x10\0\2", size))
            method = spec.BasicDeliver("tag", first_tag + len(bodies), redelivered, "x", key)
            expected += connection.send_content(7, method, envelope, octets)
            envelopes.append(envelope)
            bodies.append(octets)
    encoder = DeliveryEncoder(7, "tag", frame_max)
    assert b"".join(encoder.encode(first_tag, redelivered, envelopes, bodies)) == expected


def test_large_bodies_are_not_copied() -> None:
    body = b"x" * OWN_BUFFER_BYTES_MIN
    envelope = Envelope.pack("", "k", b"\0\0", len(body))
    buffers = DeliveryEncoder(1, "t", 131072).encode(1, False, [envelope] * 2, [body] * 2)
    assert sum(isinstance(b, memoryview) and b.obj is body for b in buffers) == 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), _BODIES), max_size=8))
def test_one_delivery_is_encoded_as_among_others(messages: list[tuple[str, bool, bytes]]) -> None:
    """Whatever stood around the one before is not what stands around this one."""
    connection = running(4096)
    encoder = DeliveryEncoder(7, "tag", 4096)
    envelopes: dict[tuple[str, int], Envelope] = {}
    for tag, (key, redelivered, octets) in enumerate(messages):
        size = len(octets)
        envelope = envelopes.setdefault((key, size), Envelope.pack("x", key, b"\x10\0\2", size))
        method = spec.BasicDeliver("tag", tag, redelivered, "x", key)
        expected = connection.send_content(7, method, envelope, octets)
        assert b"".join(encoder.encode(tag, redelivered, [envelope], [octets])) == expected


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "ENDS_MAX", 100)
    deliver._ENDS.clear()
    encoder = DeliveryEncoder(1, "t", 131072)
    envelopes = [Envelope.pack("", f"k{i}", b"\0\0", 1) for i in range(1000)]
    first = encoder.encode(1, False, envelopes, [b"x"] * len(envelopes))
    assert 0 < len(deliver._ENDS) <= 100 and len(encoder._fronts) <= 3
    again = [encoder.encode(1 + i, False, [env], [b"x"])[0] for i, env in enumerate(envelopes)]
    assert b"".join(first) == b"".join(again)
