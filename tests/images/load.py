"""Mixed load on a traced broker, each client a thread that notes in the books what it asks for.

Publishers with confirms to work queues, through a fan-out, and to a backlog; consumers that ack, one
of which never acks some, one of which gives some back; messages that are handed on: dropped at a
limit, expired, delayed, given back too often; transactions; queues that come and go. Threads end
when their connection does, or when told to.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pamqp.commands import Basic, Channel, Exchange, Queue, Tx
from pamqp.commands import Connection as ConnectionMethods

from tests.crash.journal import Identity
from tests.images.books import Books, Client, Entry
from tests.images.topology import (
    BACKLOG,
    COUNTED,
    DEAD,
    DELAYED,
    FANNED,
    FANOUT,
    HANDED_TO,
    HELD,
    LATE,
    LIMITED,
    QUEUES,
    STREAM,
    TIMED,
    TX,
    WORK,
)
from tests.live import conversation
from tests.live.conversation import Closed, Message, Talk, encode_content

# From exchange and key to queues, and how often.
ROUTES = {
    ("", WORK): (WORK,),
    ("", HELD): (HELD,),
    ("", BACKLOG): (BACKLOG,),
    (FANOUT, ""): FANNED,
    ("", STREAM): (STREAM,),
    ("", LIMITED): (LIMITED,),
    ("", TIMED): (TIMED,),
    ("", COUNTED): (COUNTED,),
    (DELAYED, LATE): (LATE,),
}
WEIGHTS = (8, 4, 1, 2, 2, 2, 1, 2, 1)  # the backlog only grows: every image has all of it
DELAY_MS_MAX = 400
TX_PUBLISHER, SHORT_PUBLISHER = 100, 101
SHORT_LIVED_MAX = 4
WINDOW = 100
PREFETCH = 50
PAUSE_S = 0.03

Work = Callable[[Talk, Client, random.Random], None]


def declare(talk: Talk, client: Client) -> None:
    """What all the others use."""
    talk.call(Exchange.Declare(exchange=FANOUT, exchange_type="fanout", durable=True))
    delayed: dict[str, Any] = {"x-delayed-type": "direct"}
    talk.call(
        Exchange.Declare(
            exchange=DELAYED, exchange_type="x-delayed-message", durable=True, arguments=delayed
        )
    )
    for queue, arguments in QUEUES.items():
        client.declared.append(queue)
        talk.call(Queue.Declare(queue=queue, durable=True, arguments=arguments))
    for queue, exchange in (*((queue, FANOUT) for queue in FANNED), (LATE, DELAYED)):
        client.bound.append(queue)
        talk.call(Queue.Bind(queue=queue, exchange=exchange, routing_key=queue))


def content(talk: Talk, identity: Identity, delay_ms: int | None = None) -> bytes:
    """Header and body frames of a message."""
    properties = Basic.Properties(
        message_id=str(identity),
        delivery_mode=2 if identity.is_persistent else 1,
        headers=None if delay_ms is None else {"x-delay": delay_ms},
    )
    return encode_content(talk.number, identity.body, properties)


def identity_of(message: Message) -> Identity:
    """Which one it is; its body is checked."""
    identity = Identity.parse(message.properties.message_id)
    assert message.body == identity.body, f"{identity} is corrupt"
    return identity


class Connection(conversation.Client):
    """A connection that takes the broker's close for its end."""

    def next(self, channel: int, deadline_s: float | None = None) -> Any:
        """What comes next. Raises Closed, Silence."""
        value = super().next(channel, deadline_s)
        if isinstance(value, ConnectionMethods.Close):
            raise Closed
        return value


class Load:
    """All the threads on one run of the broker. `process` is its number in the trace."""

    def __init__(self, url: str, process: int, books: Books, seed: int) -> None:
        self._url = url
        self._process = process
        self._books = books
        self._seed = seed
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._stopped = False

    def start(self) -> None:
        """Declare, then let all go."""
        self._run(lambda talk, client, choice: declare(talk, client), random.Random(0))
        works = [
            self._publisher(0),
            self._publisher(1),
            self._consumer(WORK, hold=0.0),
            self._consumer(HELD, hold=0.02),
            self._consumer(COUNTED, hold=0.02, back=0.7),
            self._consumer(DEAD, hold=0.5),
            self._transactions,
            self._short_lived,
        ]
        for number, work in enumerate(works):
            choice = random.Random(self._seed * 100 + self._process * 10 + number)
            thread = threading.Thread(target=self._run, args=(work, choice), daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Wait until each has noticed the end. Raises what went wrong in one."""
        self._stopped = True
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client did not notice the end"
        if self._failures:
            raise self._failures[0]

    def _run(self, work: Work, choice: random.Random) -> None:
        connection = None
        try:
            with contextlib.suppress(Closed, ConnectionRefusedError):
                connection = Connection(self._url, deadline_s=20)
                port = connection.socket.getsockname()[1]
                client = self._books.clients[self._process, port] = Client()
                work(connection.channel(), client, choice)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            self._failures.append(error)
        finally:
            if connection is not None:
                connection.abort()

    def _publish(
        self,
        talk: Talk,
        client: Client,
        publisher: int,
        route: tuple[str, str],
        queues: Sequence[str],
        count: int,
        delay_ms: int | None = None,
    ) -> None:
        method = Basic.Publish(exchange=route[0], routing_key=route[1])
        pieces: list[Basic.Publish | bytes] = []
        for identity in self._books.sending(publisher, queues, count):
            client.published.append((identity, tuple(queues)))
            pieces += [method, content(talk, identity, delay_ms)]
        talk.send(*pieces)

    def _publisher(self, number: int) -> Work:
        def work(talk: Talk, client: Client, choice: random.Random) -> None:
            talk.confirm()
            confirmed = 0
            while not self._stopped:
                [route] = choice.choices(list(ROUTES), WEIGHTS)
                count = choice.choice((1, 1, 2, 5, 15))
                delay_ms = choice.randint(1, DELAY_MS_MAX) if route[0] == DELAYED else None
                self._publish(talk, client, number, route, ROUTES[route], count, delay_ms)
                window = choice.choice((0, WINDOW))
                while len(client.published) - confirmed > window:
                    confirmed = _tag(talk)
                time.sleep(choice.uniform(0, 2 * PAUSE_S))

        return work

    def _consumer(self, queue: str, hold: float, back: float = 0.0) -> Work:
        """A consumer that keeps a share of `hold` of its messages for ever, and rejects a share of
        `back` of the others, so that they come again."""

        def work(talk: Talk, client: Client, choice: random.Random) -> None:
            talk.call(Basic.Qos(prefetch_count=PREFETCH))
            talk.consume(queue)
            acked: list[Entry] = []
            answered = held = 0
            while not self._stopped:
                value = talk.next()
                if isinstance(value, Channel.FlowOk):
                    answered += 1
                    continue
                entry = (queue, identity_of(value))
                if choice.random() < hold and held < PREFETCH // 2:
                    held += 1
                    continue
                if choice.random() < back:
                    talk.send(Basic.Reject(value.method.delivery_tag, requeue=True))
                    continue
                self._books.acking(entry)
                talk.send(Basic.Ack(value.method.delivery_tag))
                if queue in HANDED_TO:
                    continue  # it may come again, from where it was
                acked.append(entry)
                if len(acked) >= 10 and len(client.flows) - answered < 3:
                    client.flows.append(acked)
                    talk.send(Channel.Flow(active=True))
                    acked = []

        return work

    def _transactions(self, talk: Talk, client: Client, choice: random.Random) -> None:
        """Publish some, ack some, commit."""
        talk.call(Tx.Select())
        while not self._stopped:
            identities = self._books.sending(TX_PUBLISHER, [TX], choice.randint(0, 4))
            method = Basic.Publish(exchange="", routing_key=TX)
            for identity in identities:
                talk.send(method, content(talk, identity))
            entries: list[Entry] = []
            for _ in range(choice.randint(0, 5)):
                message = talk.get(TX)
                if message is None:
                    break
                entry = (TX, identity_of(message))
                self._books.acking(entry)
                talk.send(Basic.Ack(message.method.delivery_tag))
                entries.append(entry)
            client.commits.append((identities, entries, (TX,)))
            talk.call(Tx.Commit())
            time.sleep(choice.uniform(0, 2 * PAUSE_S))

    def _short_lived(self, talk: Talk, client: Client, choice: random.Random) -> None:
        """Queues are declared, used, and mostly deleted."""
        talk.confirm()
        alive: deque[str] = deque()
        number = 0
        while not self._stopped:
            queue = f"images.short.{self._process}.{number}"
            number += 1
            client.declared.append(queue)
            talk.call(Queue.Declare(queue=queue, durable=True))
            alive.append(queue)
            before = len(client.published)
            self._publish(
                talk, client, SHORT_PUBLISHER, ("", queue), (queue,), choice.randint(1, 3)
            )
            while before < len(client.published):
                before = _tag(talk)
            if len(alive) > SHORT_LIVED_MAX:
                gone = alive.popleft()
                self._books.deleting(gone)
                client.deleted.append(gone)
                talk.call(Queue.Delete(queue=gone))
            time.sleep(choice.uniform(0, 4 * PAUSE_S))


def _tag(talk: Talk) -> int:
    """Up to where the next confirm goes."""
    value = talk.next()
    assert isinstance(value, Basic.Ack), value
    return int(value.delivery_tag)
