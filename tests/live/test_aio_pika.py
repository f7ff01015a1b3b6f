"""aio-pika: pools of channels, robust connections, patterns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, HeadersType
from aio_pika.patterns import RPC, Master

from tests.live.conversation import unique

DEADLINE_S = 20


def play(url: str, scene: Callable[[AbstractConnection], Awaitable[None]]) -> None:
    """Run `scene` with a connection, on an asyncio loop of its own."""

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with await aio_pika.connect(url) as connection:
                await scene(connection)

    asyncio.run(run())


@asynccontextmanager
async def own_queue(channel: AbstractChannel, **options: Any) -> AsyncIterator[Any]:
    """An exclusive queue."""
    yield await channel.declare_queue("", exclusive=True, **options)


def test_publish_confirmed_and_get(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        async with own_queue(channel) as queue:
            message = aio_pika.Message(
                b"body",
                headers={"a": 1, "b": [1, "two", None], "c": {"d": True}, "e": 1.5},
                content_type="text/plain",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                priority=3,
            )
            confirm = await channel.default_exchange.publish(message, queue.name)
            assert isinstance(confirm, aiormq.spec.Basic.Ack)
            got = await queue.get(timeout=5)
            assert got.body == b"body" and got.headers == message.headers
            assert got.priority == 3 and not got.redelivered
            await got.ack()
            with pytest.raises(aio_pika.exceptions.QueueEmpty):
                await queue.get(timeout=1)

    play(broker_url, scene)


def test_thousand_publishes_at_once(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        async with own_queue(channel) as queue:
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(aio_pika.Message(b"%d" % n), queue.name)
                    for n in range(1000)
                )
            )
            bodies = set()
            async with queue.iterator() as messages:
                async for message in messages:
                    async with message.process():
                        bodies.add(message.body)
                    if len(bodies) == 1000:
                        break

    play(broker_url, scene)


def test_unroutable_raises(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel(on_return_raises=True)
        with pytest.raises(aio_pika.exceptions.DeliveryError):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), unique("missing"))
        assert not channel.is_closed

    play(broker_url, scene)


def test_consume_nack_and_redelivery(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        async with own_queue(channel) as queue:
            seen: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()

            async def on_message(message: AbstractIncomingMessage) -> None:
                await seen.put((message.body, bool(message.redelivered)))
                if message.redelivered:
                    await message.ack()
                else:
                    await message.nack(requeue=True)

            tag = await queue.consume(on_message)
            for number in range(3):
                await channel.default_exchange.publish(aio_pika.Message(b"%d" % number), queue.name)
            got = [await seen.get() for _ in range(6)]
            assert got == [(b"%d" % (n // 2), bool(n % 2)) for n in range(6)]
            await queue.cancel(tag)

    play(broker_url, scene)


def test_prefetch_bounds_what_is_under_way(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=5)
        async with own_queue(channel) as queue:
            under_way, most, done = 0, 0, asyncio.Event()
            total = 0

            async def on_message(message: AbstractIncomingMessage) -> None:
                nonlocal under_way, most, total
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.001)
                under_way -= 1
                await message.ack()
                total += 1
                if total == 50:
                    done.set()

            await queue.consume(on_message)
            for _ in range(50):
                await channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name)
            await done.wait()
            assert most <= 5

    play(broker_url, scene)


def test_exchange_to_exchange_and_headers(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        first = await channel.declare_exchange(unique("first"), "fanout", auto_delete=True)
        second = await channel.declare_exchange(unique("second"), "headers", auto_delete=True)
        await second.bind(first)
        async with own_queue(channel) as queue:
            await queue.bind(second, arguments={"x-match": "any", "kind": "a", "level": 9})
            kinds: list[HeadersType] = [{"kind": "b"}, {"kind": "a"}, {"level": 9}, {}]
            for headers in kinds:
                await first.publish(aio_pika.Message(str(headers).encode(), headers=headers), "")
            got = [(await queue.get(timeout=5, no_ack=True)).body for _ in range(2)]
            assert got == [b"{'kind': 'a'}", b"{'level': 9}"]

    play(broker_url, scene)


def test_transaction(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        async with own_queue(channel) as queue:
            async with channel.transaction():
                await channel.default_exchange.publish(aio_pika.Message(b"in"), queue.name)
            with pytest.raises(ZeroDivisionError):
                async with channel.transaction():
                    await channel.default_exchange.publish(aio_pika.Message(b"out"), queue.name)
                    raise ZeroDivisionError
            assert (await queue.get(timeout=5, no_ack=True)).body == b"in"
            assert await queue.get(timeout=5, fail=False) is None

    play(broker_url, scene)


def test_rpc_pattern(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        name = unique("multiply")
        rpc = await RPC.create(channel)

        async def multiply(*, x: int, y: int) -> int:
            return x * y

        await rpc.register(name, multiply, auto_delete=True)
        answers = await asyncio.gather(
            *(rpc.call(name, kwargs={"x": n, "y": n}) for n in range(20))
        )
        assert answers == [n * n for n in range(20)]
        await rpc.close()

    play(broker_url, scene)


def test_master_and_worker_pattern(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        master, name = Master(channel), unique("work")
        done: asyncio.Queue[int] = asyncio.Queue()

        async def work(*, number: int) -> None:
            await done.put(number)

        worker = await master.create_worker(name, work, auto_delete=True)
        for number in range(20):
            await master.create_task(name, {"number": number})
        assert sorted([await done.get() for _ in range(20)]) == list(range(20))
        await worker.close()

    play(broker_url, scene)


def test_errors_close_the_channel_alone(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue(unique("missing"), passive=True)
        channel = await connection.channel()
        queue = await channel.declare_queue(unique("unequal"), auto_delete=True)
        other = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed):
            await other.declare_queue(queue.name, auto_delete=False)
        await queue.delete()

    play(broker_url, scene)


def test_exclusive_queue_of_another_connection(broker_url: str) -> None:
    async def scene(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        async with own_queue(channel) as queue, await aio_pika.connect(broker_url) as other:
            with pytest.raises(aiormq.exceptions.ChannelLockedResource):
                await (await other.channel()).declare_queue(queue.name, passive=True)

    play(broker_url, scene)


class Relay:
    """A port that passes everything on to the broker, until it is cut."""

    def __init__(self, url: str) -> None:
        self.target = urlsplit(url)
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        """Listen on loopback; return the address to connect to."""
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return f"amqp://guest:guest@127.0.0.1:{port}/"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self.target.hostname, self.target.port)
        self.writers += [writer, there[1]]
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    def cut(self) -> None:
        """Reset all connections that pass through."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


def test_robust_connection_comes_back_with_all_it_had(broker_url: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            relay = Relay(broker_url)
            connection = await aio_pika.connect_robust(await relay.start(), reconnect_interval=0.1)
            channel = await connection.channel()
            queue = await channel.declare_queue(unique("robust"), auto_delete=True)
            exchange = await channel.declare_exchange(unique("robust"), "fanout", auto_delete=True)
            await queue.bind(exchange)
            got: asyncio.Queue[bytes] = asyncio.Queue()

            async def on_message(message: AbstractIncomingMessage) -> None:
                await message.ack()
                await got.put(message.body)

            await queue.consume(on_message)
            await exchange.publish(aio_pika.Message(b"before"), "")
            assert await got.get() == b"before"
            came_back = asyncio.Event()
            connection.reconnect_callbacks.add(lambda *_: came_back.set())
            relay.cut()
            await came_back.wait()
            await exchange.publish(aio_pika.Message(b"after"), "")
            assert await got.get() == b"after"
            await connection.close()
            relay.server.close()

    asyncio.run(run())
