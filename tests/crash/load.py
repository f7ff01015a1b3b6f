"""Mixed load on a broker that is going to die: publishers and consumers, each a thread.

They write into the journal what they did, and end when their connection does. What goes on is
drawn from a seeded generator, so that a failure's script can be read again (its timing cannot).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pamqp.commands import Basic, Channel, Exchange, Queue, Tx

from tests.crash.journal import Delivery, Identity, Journal
from tests.crash.passing import Passing, content
from tests.crash.streaming import Streaming
from tests.live.conversation import Client, Closed, Message, Talk

FANOUT = "crash.fanout"
# Read by two consumers, by a hesitant one, through the fan-out alone, by nobody, in transactions.
SHARED, HELD, FANNED, BACKLOG, TRADED = (
    f"crash.{name}" for name in ("shared", "held", "fanned", "backlog", "traded")
)
STREAM = "crash.stream"
ROUTES = {
    ("", SHARED): (SHARED,),
    ("", HELD): (HELD,),
    ("", BACKLOG): (BACKLOG,),
    ("", STREAM): (STREAM,),
    (FANOUT, ""): (HELD, FANNED, BACKLOG, STREAM),
}
WINDOW = 300
PREFETCH = 200
# With how many messages may be on their way to consumers.
QUEUES = {SHARED: 2 * PREFETCH, HELD: PREFETCH, FANNED: PREFETCH, BACKLOG: 0, TRADED: 1}
PUBLISHERS = 3
TRADER = PUBLISHERS  # the publishers that follow, as the journal numbers them
PASSER = PUBLISHERS + 1
STREAMER = PUBLISHERS + 2


def declare(talk: Talk, streaming: Streaming) -> None:
    """The topology; again after each restart, where it must be there as it was."""
    streaming.declare(talk)
    talk.call(Exchange.Declare(exchange=FANOUT, exchange_type="fanout", durable=True))
    for queue in QUEUES:
        talk.call(Queue.Declare(queue=queue, durable=True))
    for queue in ROUTES[FANOUT, ""]:
        talk.call(Queue.Bind(queue=queue, exchange=FANOUT))


def understood(message: Message) -> Delivery:
    """The journal's view of a delivered message."""
    identity = Identity.parse(message.properties.message_id)
    return Delivery(identity, message.body, message.method.redelivered)


@dataclass
class Load:
    """All threads of one round."""

    url: str
    journal: Journal
    passing: Passing
    streaming: Streaming
    seed: int

    def __post_init__(self) -> None:
        self.failures: list[BaseException] = []
        self.threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def start(self) -> None:
        """Publishers on all routes, consumers on all queues but the backlog, and of the stream."""
        works: list[Callable[[Client, random.Random], None]] = [
            *(self._publisher(number) for number in range(PUBLISHERS)),
            self._consumer(SHARED, hold=0.0, together=7),
            self._consumer(SHARED, hold=0.1),
            self._consumer(HELD, hold=0.5),
            self._consumer(FANNED, hold=0.1),
            self.passing.work,
            self.streaming.work,
        ]
        # A commit syncs the acks of all others, too; in half of the rounds they are on their own.
        if random.Random(self.seed).random() < 0.5:
            works.append(self._trade)
        for number, work in enumerate(works):
            generator = random.Random(self.seed * 100 + number)
            thread = threading.Thread(target=self._run, args=(work, generator), daemon=True)
            thread.start()
            self.threads.append(thread)

    def join(self) -> None:
        """Wait until every thread has noticed the end. Raises what went wrong in one."""
        self._stop.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a client did not notice that the broker died"
        if self.failures:
            raise self.failures[0]

    def _run(self, work: Callable[[Client, random.Random], None], generator: random.Random) -> None:
        client = None
        try:
            with contextlib.suppress(Closed, ConnectionRefusedError):
                client = Client(self.url, deadline_s=20)
                work(client, generator)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            self.failures.append(error)
        finally:
            if client is not None:
                client.abort()

    def _publisher(self, number: int) -> Callable[[Client, random.Random], None]:
        def work(client: Client, generator: random.Random) -> None:
            talk = client.channel()
            talk.confirm()
            # Sent and not yet confirmed, by delivery tag.
            open_tags: dict[int, tuple[Identity, float]] = {}
            next_tag = 1

            def take_confirm() -> None:
                value = talk.next()
                assert isinstance(value, Basic.Ack), value
                tag = value.delivery_tag
                tags = [t for t in open_tags if t <= tag] if value.multiple else [tag]
                confirmed = [open_tags.pop(t) for t in tags]
                self.journal.confirm([identity for identity, _ in confirmed])
                on_disk = [at for identity, at in confirmed if identity.is_persistent]
                if on_disk:
                    self.journal.confirmed_by_disk(max(on_disk))

            try:
                while True:
                    route = generator.choice(list(ROUTES))
                    count = generator.choice((1, 1, 5, 20, 60))
                    identities = self.journal.identities(number, count)
                    self.journal.sending(ROUTES[route], identities)
                    exchange, key = route
                    method = Basic.Publish(exchange=exchange, routing_key=key)
                    pieces: list[Basic.Publish | bytes] = []
                    for identity in identities:
                        open_tags[next_tag] = identity, time.monotonic()
                        next_tag += 1
                        pieces += [method, content(talk, identity)]
                    talk.send(*pieces)
                    while len(open_tags) > generator.choice((0, WINDOW, WINDOW)):
                        take_confirm()
            except Closed:
                # Confirms that were under way when the broker died are promises too.
                while True:
                    take_confirm()

        return work

    def _consumer(
        self, queue: str, hold: float, together: int = 1
    ) -> Callable[[Client, random.Random], None]:
        """A consumer that keeps a share of `hold` of its messages, for a while at least.

        With `together` acks of so many at a time are one: it must keep none.
        """
        assert together == 1 or not hold

        def work(client: Client, generator: random.Random) -> None:
            talk = client.channel()
            talk.call(Basic.Qos(prefetch_count=PREFETCH))
            talk.consume(queue)
            held: list[tuple[int, Identity]] = []
            last: dict[int, int] = {}
            # Acks sent before each question that is not answered yet.
            asked: deque[list[Identity]] = deque()
            acked: list[Identity] = []
            waiting: list[Identity] = []
            while True:
                value = talk.next()
                if isinstance(value, Channel.FlowOk):
                    self.journal.acks_read(queue, asked.popleft())
                    continue
                assert isinstance(value, Message), value
                tag, delivery = value.method.delivery_tag, understood(value)
                self.journal.delivered(queue, delivery, last)
                if generator.random() < hold:
                    held.append((tag, delivery.identity))
                else:
                    waiting.append(delivery.identity)
                    if len(waiting) >= together:
                        self.journal.acking(queue, waiting)
                        talk.send(Basic.Ack(tag, multiple=together > 1))
                        acked += waiting
                        waiting = []
                if len(held) >= PREFETCH // 2:
                    self._let_go(talk, queue, held, acked, generator)
                if len(acked) >= 20 and len(asked) < 3:
                    talk.send(Channel.Flow(active=True))
                    asked.append(acked)
                    acked = []

        return work

    def _let_go(
        self,
        talk: Talk,
        queue: str,
        held: list[tuple[int, Identity]],
        acked: list[Identity],
        generator: random.Random,
    ) -> None:
        """Settle what was kept, one way or another."""
        keep = generator.randrange(len(held))
        gone, held[:] = held[:keep], held[keep:]
        generator.shuffle(gone)
        for tag, identity in gone:
            if generator.random() < 0.3:
                self.journal.requeueing(queue, [identity])
                talk.send(Basic.Nack(tag, requeue=True))
            else:
                self.journal.acking(queue, [identity])
                acked.append(identity)
                talk.send(Basic.Ack(tag))

    def _trade(self, client: Client, generator: random.Random) -> None:
        """Transactions: messages taken from the queue and put into it, or not."""
        talk = client.channel()
        talk.call(Tx.Select())
        routes = [(("", TRADED), (TRADED,)), ((FANOUT, ""), ROUTES[FANOUT, ""])]
        held: list[tuple[int, Identity]] = []
        last: dict[int, int] = {}
        while True:
            sent: list[tuple[tuple[str, ...], list[Identity]]] = []
            for (exchange, key), queues in generator.sample(routes, 2):
                identities = self.journal.identities(TRADER, generator.choice((1, 3, 20)))
                sent.append((queues, identities))
                method = Basic.Publish(exchange=exchange, routing_key=key)
                talk.send(*(x for i in identities for x in (method, content(talk, i))))
            for _ in range(generator.randrange(20)):
                message = talk.get(TRADED)
                if message is None:
                    break
                delivery = understood(message)
                self.journal.delivered(TRADED, delivery, last)
                held.append((message.method.delivery_tag, delivery.identity))
            talk.send(*(Basic.Ack(tag) for tag, _ in held))
            if generator.random() < 0.2:
                talk.call(Tx.Rollback())  # what was published is gone, what was taken stays taken
                continue
            taken = [identity for _, identity in held]
            for queues, identities in sent:
                self.journal.sending(queues, identities)
            self.journal.acking(TRADED, taken)
            talk.call(Tx.Commit())
            for _, identities in sent:
                self.journal.confirm(identities)
            self.journal.acks_committed(TRADED, taken)
            held.clear()


def drain(talk: Talk, queue: str) -> list[Delivery]:
    """All that the queue has, delivered and not acknowledged."""
    count = talk.ready(queue)
    tag = talk.consume(queue)
    deliveries = [understood(message) for message in talk.deliveries(count)]
    talk.quiet(queue)
    talk.call(Basic.Cancel(tag))
    return deliveries
