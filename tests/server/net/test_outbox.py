"""What is written comes out once, in order, whatever the socket takes, through any transport."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.frames import PROTOCOL_HEADER, Buffer, method_frame
from qlog.server.net import outbox
from qlog.server.net.outbox import OUTBOX_BYTES_MAX, Outbox
from qlog.server.net.transport import PLAIN
from tests.server.broker.support import make
from tests.server.net.loop import LOGIN, Loop, Remote, running


class Narrow:
    """A socket that takes so many octets a call; 0: none for now."""

    def __init__(self, sizes: list[int]) -> None:
        self.taken = b""
        self._sizes = sizes

    def send(self, buffer: Buffer) -> int:
        return self.sendmsg([buffer])

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        size = self._sizes.pop(0) if self._sizes else 1 << 30
        if not size:
            raise BlockingIOError
        data = b"".join(buffers)[:size]
        self.taken += data
        return len(data)


class Veil:
    """A transport as TLS is one: it speaks first, and what passes gets longer and unreadable."""

    portion_bytes = 7
    ended = False
    secured = None

    def __init__(self) -> None:
        self._words = [b"hello"]
        self.greeted = False

    @property
    def has_words(self) -> bool:
        return bool(self._words)

    @property
    def greeting(self) -> bool:
        return not self.greeted

    def farewell(self) -> bool:
        return False

    def feed(self, data: bytes) -> bytes:
        """Every other octet is meant; the first five are the peer's greeting."""
        plain = data[::2]
        if not self.greeted:
            self.greeted = True
            self._words.append(b"well met")
            return b""
        return bytes(octet ^ 0x55 for octet in plain)

    def seal(self, buffers: Sequence[Buffer]) -> bytes:
        words, self._words = self._words, []
        return b"".join((*words, *map(veiled, buffers)))


def veiled(data: Buffer) -> bytes:
    """As `Veil` wants it."""
    return b"".join(bytes((octet ^ 0x55, 0)) for octet in bytes(data))


@given(
    st.lists(
        st.lists(st.binary(min_size=1, max_size=20), max_size=6),
        max_size=8,
    ),
    st.lists(st.integers(0, 50), max_size=30),
    st.booleans(),
)
def test_all_comes_out_in_order(
    written: list[list[bytes]], sizes: list[int], through_veil: bool
) -> None:
    box = Outbox()
    transport = Veil() if through_veil else PLAIN
    narrow = Narrow(sizes)
    sock = cast(socket.socket, narrow)
    expected = b"hello" if through_veil else b""
    for buffers in written:
        box.extend(buffers)
        done = box.send(sock, transport)
        expected += b"".join(veiled(buffer) if through_veil else buffer for buffer in buffers)
        assert expected.startswith(narrow.taken)
        rest = len(expected) - len(narrow.taken)
        if through_veil:  # what is not sealed yet counts as it was written
            assert rest // 2 <= box.bytes <= rest
        else:
            assert box.bytes == rest
        assert done is not bool(box) and bool(box) is bool(box.bytes)
    while not box.send(sock, transport):
        pass
    assert narrow.taken == (expected or (b"hello" if through_veil else b"")) and not box.bytes


def test_full_and_overfull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OVERFULL_BYTES", 2 * OUTBOX_BYTES_MAX)
    box = Outbox()
    box.add(bytes(OUTBOX_BYTES_MAX - 1))
    assert not box.full
    box.add(b"x")
    assert box.full and not box.overfull
    box.add(bytes(OUTBOX_BYTES_MAX))
    assert box.overfull
    box.clear()
    assert not box and not box.full and not box.overfull


def test_one_call_does_not_send_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads as fast as it is sent to does not keep the others waiting."""
    monkeypatch.setattr(outbox, "SEND_BYTES_MAX", 100)
    monkeypatch.setattr(outbox, "BUFFERS_MAX", 2)
    box = Outbox()
    box.extend([bytes(30)] * 10)
    assert not box.send(cast(socket.socket, Narrow([])), PLAIN)
    assert 100 <= 300 - box.bytes < 200
    assert box.send(cast(socket.socket, Narrow([])), PLAIN)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop without clients."""
    yield from running(tmp_path / "data")


def test_a_session_speaks_through_its_transport(loop: Loop) -> None:
    """It is greeted before a word of AMQP, and a partial read means nothing until it is whole."""
    remote = Remote(loop, Veil())
    remote.write(b"h.e.l.l.o.")
    loop.settle()
    assert remote.socket.recv(100) == b"hellowell met"
    for octets in (
        PROTOCOL_HEADER,
        method_frame(0, LOGIN),
        method_frame(0, spec.ConnectionTuneOk(2047, 131072, 0)),
        method_frame(0, make(spec.ConnectionOpen, virtual_host="/")),
    ):
        sealed = veiled(octets)
        remote.write(sealed[:10])
        loop.settle()
        remote.write(sealed[10:])
        loop.settle()
    said = remote.socket.recv(100_000)[::2]
    last = bytes(octet ^ 0x55 for octet in said)
    assert last.endswith(method_frame(0, spec.ConnectionOpenOk()))
