"""Mutated frames against a live broker.

    python -m tests.fuzz.frames --frames 1000000

Valid conversations (handshake, channels, topology, contents, acknowledgements) are changed by
seeded mutations: flipped bytes, truncated, duplicated, dropped, swapped and spliced frames, wrong
sizes, wrong channels, wild numbers. Each changed conversation goes over a connection of its own;
answers are read and thrown away. Every now and then, and at the end, the broker must be alive, serve
a normal client, and be back near where it was in open files and memory.

It starts a broker of its own, unless `--url` names one (then files and memory are not measured). It
does not judge the answers: `tests/live` does that.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue, Tx

from tests.live.conversation import (
    HEADER,
    METHOD,
    PROTOCOL_HEADER,
    Client,
    encode_content,
    encode_frame,
    encode_method,
    serves,
    until,
)
from tests.live.server import BrokerProcess

# Checked between conversations of this many frames in all.
CHECK_FRAMES = 50_000
# A conversation that is not over by then is cut: a mutated one may well be waiting for us.
ANSWER_S_MAX = 0.05
# How far memory may have grown: caches and allocator slack, not a leak that grows with the frames.
GROWTH_BYTES_MAX = 64 << 20

QUEUE, DURABLE, EXCHANGE = "fuzz.queue", "fuzz.durable", "fuzz.exchange"
HEADERS: dict[str, Any] = {
    "text": "value",
    "number": 1 << 40,
    "small": 5,
    "list": [1, "two", None, {"deep": [True, 1.5]}],
    "table": {"a": {"b": {"c": "d"}}},
    "CC": [QUEUE],
}


def message(
    exchange: str, key: str, data: bytes, channel: int = 1, **properties: Any
) -> list[bytes]:
    """A publish as its frames."""
    content = encode_content(channel, data, Basic.Properties(**properties))
    publish = Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
    return [encode_method(publish, channel), *cut_into_frames(content)]


def cut_into_frames(data: bytes) -> list[bytes]:
    """The frames of a byte string that holds whole frames."""
    frames = []
    while data:
        size = 8 + struct.unpack_from(">I", data, 3)[0]
        frames.append(data[:size])
        data = data[size:]
    return frames


def methods(*values: Any, channel: int = 1) -> list[bytes]:
    """Method frames."""
    return [encode_method(value, channel) for value in values]


START_OK = Connection.StartOk(
    {"product": "fuzz", "capabilities": {"basic.nack": True, "consumer_cancel_notify": True}},
    "PLAIN",
    "\0guest\0guest",
    "en_US",
)
HANDSHAKE = [
    PROTOCOL_HEADER,
    *methods(START_OK, Connection.TuneOk(2047, 131072, 0), Connection.Open("/"), channel=0),
    *methods(Channel.Open()),
]
TOPOLOGY = methods(
    Queue.Declare(queue=QUEUE, auto_delete=True, arguments={"x-max-length": 100}),
    Queue.Declare(queue=DURABLE, durable=True),
    Exchange.Declare(exchange=EXCHANGE, exchange_type="topic", auto_delete=True),
    Queue.Bind(queue=QUEUE, exchange=EXCHANGE, routing_key="a.*.#"),
)
GOODBYE = methods(Channel.Close(200, "", 0, 0)) + methods(
    Connection.Close(200, "", 0, 0), channel=0
)

# Each after the handshake and before the goodbye.
CONVERSATIONS: dict[str, list[bytes]] = {
    "topology": [
        *TOPOLOGY,
        *methods(
            Queue.Declare(queue=QUEUE, passive=True),
            Exchange.Bind(source=EXCHANGE, destination="amq.fanout", routing_key="k"),
            Exchange.Unbind(source=EXCHANGE, destination="amq.fanout", routing_key="k"),
            Queue.Unbind(queue=QUEUE, exchange=EXCHANGE, routing_key="a.*.#"),
            Queue.Bind(queue=QUEUE, exchange="amq.headers", arguments={"x-match": "any", "h": 1}),
            Queue.Purge(queue=DURABLE),
            Queue.Delete(queue=QUEUE),
            Exchange.Delete(exchange=EXCHANGE),
        ),
    ],
    "publish": [
        *TOPOLOGY,
        *methods(Confirm.Select()),
        *message("", QUEUE, b"x" * 100),
        *message(EXCHANGE, "a.b.c", b"y" * 3000, headers=HEADERS, message_id="m", priority=4),
        *message("", DURABLE, b"durable", delivery_mode=2, expiration="1000"),
        *message("", QUEUE, b"", correlation_id="c", reply_to="somewhere"),
        *message("nowhere.at.all", "", b"lost"),
    ],
    "uniform": [
        *TOPOLOGY,
        *methods(Confirm.Select()),
        *(frame for _ in range(20) for frame in message("", QUEUE, b"z" * 64, delivery_mode=2)),
    ],
    "large": [*TOPOLOGY, *message("", QUEUE, b"large" * 60_000, headers=HEADERS)],
    "consume": [
        *TOPOLOGY,
        *methods(Basic.Qos(prefetch_count=3), Basic.Consume(queue=QUEUE, consumer_tag="t")),
        *(frame for _ in range(6) for frame in message("", QUEUE, b"body")),
        *methods(
            Basic.Ack(1),
            Basic.Nack(2, requeue=True),
            Basic.Reject(3, requeue=False),
            Basic.Recover(requeue=True),
            Basic.Ack(0, multiple=True),
            Basic.Cancel("t"),
        ),
    ],
    "get": [
        *TOPOLOGY,
        *(frame for _ in range(3) for frame in message("", QUEUE, b"body", headers=HEADERS)),
        *methods(*(Basic.Get(queue=QUEUE) for _ in range(4))),
        *methods(*(Basic.Ack(tag) for tag in (1, 2, 3))),
    ],
    "transaction": [
        *TOPOLOGY,
        *methods(Tx.Select()),
        *message("", DURABLE, b"in a transaction", delivery_mode=2),
        *methods(Basic.Get(queue=DURABLE), Basic.Ack(1), Tx.Commit()),
        *message("", DURABLE, b"rolled back"),
        *methods(Tx.Rollback(), Queue.Purge(queue=DURABLE)),
    ],
    "reply-to": [
        *TOPOLOGY,
        *methods(Basic.Consume(queue="amq.rabbitmq.reply-to", no_ack=True)),
        *message("", QUEUE, b"?", reply_to="amq.rabbitmq.reply-to"),
    ],
    "channels": [
        *methods(Channel.Open(), channel=2),
        *methods(Channel.Open(), channel=2047),
        *TOPOLOGY,
        *message("", QUEUE, b"two", channel=2),
        *methods(Channel.Flow(active=True), Channel.Close(200, "", 0, 0), channel=2047),
        encode_frame(8, 0, b""),
    ],
}

Mutation = Callable[[list[bytes], random.Random], None]


def _somewhere(frames: list[bytes], generator: random.Random) -> int:
    # Mostly behind the handshake: what fails before it, fails early.
    first = len(HANDSHAKE) if generator.random() < 0.85 else 0
    return generator.randrange(min(first, len(frames) - 1), len(frames))


def flip_bytes(frames: list[bytes], generator: random.Random) -> None:
    """Some bytes of one frame become others."""
    index = _somewhere(frames, generator)
    data = bytearray(frames[index])
    if data:
        for _ in range(generator.choice((1, 1, 1, 2, 8))):
            data[generator.randrange(len(data))] = generator.randrange(256)
    frames[index] = bytes(data)


def flip_payload(frames: list[bytes], generator: random.Random) -> None:
    """As before, but the frame's own envelope stays right."""
    index = _somewhere(frames, generator)
    data = bytearray(frames[index])
    if len(data) > 8:
        for _ in range(generator.choice((1, 1, 2, 4))):
            data[generator.randrange(7, len(data) - 1)] = generator.choice(
                (0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256))
            )
    frames[index] = bytes(data)


def truncate(frames: list[bytes], generator: random.Random) -> None:
    """One frame is cut short, and all else follows."""
    index = _somewhere(frames, generator)
    frames[index] = frames[index][: generator.randrange(len(frames[index]) + 1)]


def resize_payload(frames: list[bytes], generator: random.Random) -> None:
    """The payload shrinks or grows, and the frame's size says so."""
    index = _somewhere(frames, generator)
    kind, channel, _ = _parts(frames[index])
    payload = frames[index][7:-1]
    cut = generator.randrange(len(payload) + 1)
    more = generator.randbytes(generator.choice((0, 0, 1, 7)))
    frames[index] = encode_frame(kind, channel, payload[:cut] + more)


def wrong_size(frames: list[bytes], generator: random.Random) -> None:
    """The frame's size is a lie."""
    index = _somewhere(frames, generator)
    if len(frames[index]) > 8:
        size = generator.choice(
            (0, 1, len(frames[index]), 131_072, 131_073, 1 << 31, (1 << 32) - 1)
        )
        frames[index] = frames[index][:3] + struct.pack(">I", size) + frames[index][7:]


def wrong_channel(frames: list[bytes], generator: random.Random) -> None:
    """The frame goes to another channel."""
    index = _somewhere(frames, generator)
    channel = generator.choice((0, 1, 2, 3, 2047, 2048, 65535))
    frames[index] = frames[index][:1] + struct.pack(">H", channel) + frames[index][3:]


def wrong_kind(frames: list[bytes], generator: random.Random) -> None:
    """The frame claims another type."""
    index = _somewhere(frames, generator)
    frames[index] = bytes([generator.choice((0, 1, 2, 3, 4, 8, 255))]) + frames[index][1:]


def duplicate(frames: list[bytes], generator: random.Random) -> None:
    """A frame comes again."""
    index = _somewhere(frames, generator)
    frames[index:index] = [frames[index]] * generator.choice((1, 1, 2, 50))


def drop(frames: list[bytes], generator: random.Random) -> None:
    """A frame is missing."""
    if len(frames) > 1:
        del frames[_somewhere(frames, generator)]


def swap(frames: list[bytes], generator: random.Random) -> None:
    """Two frames change places."""
    one, two = _somewhere(frames, generator), _somewhere(frames, generator)
    frames[one], frames[two] = frames[two], frames[one]


def splice(frames: list[bytes], generator: random.Random) -> None:
    """Frames of another conversation come in between."""
    other = generator.choice(list(CONVERSATIONS.values()))
    first = generator.randrange(len(other))
    index = _somewhere(frames, generator)
    frames[index:index] = other[first : first + generator.choice((1, 2, 5))]


def any_method(frames: list[bytes], generator: random.Random) -> None:
    """A method of any number, with arguments of any kind."""
    class_id = generator.choice((10, 20, 30, 40, 50, 60, 85, 90, generator.randrange(65536)))
    number = generator.choice((*range(10, 130, 10), 11, 21, 31, 41, 51, generator.randrange(65536)))
    arguments = generator.randbytes(generator.choice((0, 1, 5, 9, 40)))
    channel = generator.choice((0, 1, 1, 1))
    payload = struct.pack(">HH", class_id, number) + arguments
    frames.insert(_somewhere(frames, generator), encode_frame(METHOD, channel, payload))


def any_header(frames: list[bytes], generator: random.Random) -> None:
    """A publish whose header has any flags and properties."""
    index = _somewhere(frames, generator)
    size = generator.choice((0, 1, 5, 1 << 20, 1 << 40, (1 << 64) - 1))
    flags = generator.randrange(65536)
    payload = struct.pack(">HHQH", 60, 0, size, flags)
    payload += generator.randbytes(generator.randrange(60))
    publish = encode_method(Basic.Publish(exchange="", routing_key=QUEUE), 1)
    frames[index:index] = [publish, encode_frame(HEADER, 1, payload)]


def _parts(frame: bytes) -> tuple[int, int, int]:
    if len(frame) < 7:
        return 1, 1, 0
    kind, channel, size = struct.unpack_from(">BHI", frame)
    return kind, channel, size


MUTATIONS: tuple[Mutation, ...] = (
    flip_bytes,
    flip_payload,
    flip_payload,
    flip_payload,
    truncate,
    resize_payload,
    wrong_size,
    wrong_channel,
    wrong_kind,
    duplicate,
    drop,
    swap,
    splice,
    any_method,
    any_header,
)


def conversation(generator: random.Random) -> list[bytes]:
    """A mutated conversation, by frames."""
    frames = [*HANDSHAKE, *generator.choice(list(CONVERSATIONS.values())), *GOODBYE]
    for _ in range(generator.choice((0, 1, 1, 1, 2, 3, 6))):
        generator.choice(MUTATIONS)(frames, generator)
    return frames


def converse(address: tuple[str, int], data: bytes, generator: random.Random) -> None:
    """Send `data` over a connection of its own and throw away what comes back."""
    with contextlib.suppress(ConnectionError), socket.create_connection(address, 10) as wire:
        wire.setblocking(False)
        # Mostly whole, sometimes in two pieces: the broker's reader must keep what is unfinished.
        cut = generator.randrange(len(data)) if data and generator.random() < 0.2 else len(data)
        view = memoryview(data)
        sent = 0
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < ANSWER_S_MAX:
            limit = cut if sent < cut else len(data)
            writing = [wire] if sent < limit else []
            readable, writable, _ = select.select([wire], writing, [], ANSWER_S_MAX)
            if writable:
                sent += wire.send(view[sent:limit])
                idle_since = time.monotonic()
            if readable:
                answer = wire.recv(1 << 16)
                if not answer:
                    return
                # Whoever is told to close, or that all is closed, need not wait.
                if sent == len(data) and b"\x00\x0a\x00\x33\xce" in answer:
                    return
                idle_since = time.monotonic()
        if generator.random() < 0.5:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Figures:
    """What a run did and what it cost the broker."""

    frames: int = 0
    conversations: int = 0
    fds: tuple[int, int] = (0, 0)
    rss_bytes: tuple[int, int] = (0, 0)
    samples: list[int] = field(default_factory=list)


class Fuzzer:
    """A run over several threads: the broker, not this process, is to be busy."""

    def __init__(self, url: str, seed: int, frames_max: int, pid: int | None = None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.address = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self.seed = seed
        self.frames_max = frames_max
        self.process = psutil.Process(pid) if pid is not None else None
        self.figures = Figures()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    def run(self, threads: int = 4) -> Figures:
        """Send all frames. Raises AssertionError when the broker does not take it well."""
        self._warm_up()
        before = self._measure()
        while self.figures.frames < self.frames_max:
            goal = min(self.frames_max, self.figures.frames + CHECK_FRAMES)
            workers = [
                threading.Thread(target=self._work, args=(number, goal), daemon=True)
                for number in range(threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if self._failures:
                raise self._failures[0]
            self._check()
            self.figures.samples.append(self._measure()[1])
        if self.process is not None:
            until(lambda: self._measure()[0] <= before[0] + 3, "files are closed again", 20)
        after = self._measure()
        self.figures.fds = (before[0], after[0])
        self.figures.rss_bytes = (before[1], after[1])
        grown = after[1] - before[1]
        assert grown < GROWTH_BYTES_MAX, f"memory grew by {grown >> 20} MiB"
        return self.figures

    def _warm_up(self) -> None:
        # Caches and the interpreter's own growth are not what is looked for.
        generator = random.Random(self.seed)
        for frames in CONVERSATIONS.values():
            converse(self.address, b"".join([*HANDSHAKE, *frames, *GOODBYE]), generator)
        serves(self.url)

    def _measure(self) -> tuple[int, int]:
        if self.process is None:
            return 0, 0
        return self.process.num_fds(), self.process.memory_info().rss

    def _work(self, number: int, goal: int) -> None:
        round_ = len(self.figures.samples)
        generator = random.Random(f"{self.seed} {round_} {number}")
        try:
            while self.figures.frames < goal:
                frames = conversation(generator)
                converse(self.address, b"".join(frames), generator)
                with self._lock:
                    self.figures.frames += len(frames)
                    self.figures.conversations += 1
        except (OSError, AssertionError) as error:
            self._failures.append(error)

    def _check(self) -> None:
        if self.process is not None:
            assert self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        serves(self.url)
        # What conversations left in the durable queue is no leak.
        with Client(self.url) as client:
            client.channel().call(Queue.Delete(queue=DURABLE))


def main() -> int:
    """The command. Exit status 1 when the broker did not take it well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--url", help="a broker that runs already")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        url, broker = arguments.url, None
        if url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            broker = BrokerProcess(Path(directory) / "data").start()
            stack.callback(broker.kill)
            url = broker.url
        fuzzer = Fuzzer(url, arguments.seed, arguments.frames, broker.pid if broker else None)
        try:
            figures = fuzzer.run()
        except (AssertionError, OSError) as error:
            print(f"after {fuzzer.figures.frames} frames: {error}")
            if broker is not None:
                print("\n".join(broker.lines[-40:]))
            return 1
        if broker is not None:
            code, took_s = broker.terminate()
            print(f"exit status {code} after {took_s:.2f} s")
            if code:
                return 1
    print(
        f"{figures.frames} frames in {figures.conversations} conversations, "
        f"{time.monotonic() - begin:.0f} s; open files {figures.fds[0]} -> {figures.fds[1]}; "
        f"memory {figures.rss_bytes[0] >> 20} -> {figures.rss_bytes[1] >> 20} MiB"
    )
    if broker is not None:
        print(f"memory every {CHECK_FRAMES} frames, MiB:", *(b >> 20 for b in figures.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
