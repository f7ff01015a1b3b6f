"""Durable queues that come and go under load, with their bindings, messages and purges.

One thread works on them, so that its books are exact: `None` stands for what was asked for and not
answered. It promises: after a restart each queue and binding is there if it was declared, and not
if it was deleted; a queue has its confirmed messages in order, and none of an earlier queue of the
same name, none that was purged, none twice, none altered.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pamqp.commands import Basic, Channel, Exchange, Queue

from tests.crash.journal import Delivery, Identity, Journal
from tests.live.conversation import Client, Message, Talk, encode_content

EXCHANGE = "crash.passing"
NAMES = tuple(f"crash.passing.{number}" for number in range(4))
KEYS = ("a", "b", "c")
Understand = Callable[[Message], Delivery]


@dataclass
class Book:
    """What is known of one name."""

    exists: bool | None = False
    bound: dict[str, bool | None] = field(default_factory=dict)
    # Of the queue that exists, or may: sent there, confirmed, gone by a purge or an ack.
    routed: set[Identity] = field(default_factory=set)
    confirmed: set[Identity] = field(default_factory=set)
    gone_at: dict[Identity, float] = field(default_factory=dict)


class Passing:
    """The books of all names, and what is done to them.

    Arguments: `publisher` is this thread's number in the journal; `fanout` an exchange of others,
    to which one of the queues is bound; `fanned` a queue that has all that went there.
    """

    def __init__(self, journal: Journal, publisher: int, fanout: str, fanned: str) -> None:
        self.journal = journal
        self.publisher = publisher
        self.fanout = fanout
        self.fanned = fanned
        self._tag = 0  # of the newest publish
        self.books = {name: Book() for name in NAMES}
        self.changes_count = 0

    # -- under load --------------------------------------------------------------------------

    def work(self, client: Client, generator: random.Random) -> None:
        """Declare, bind, publish, purge, unbind, delete; ends when the broker does."""
        talk = client.channel()
        talk.confirm()
        self._tag = 0
        talk.call(Exchange.Declare(exchange=EXCHANGE, exchange_type="direct", durable=True))
        while True:
            name = generator.choice(NAMES)
            book = self.books[name]
            assert book.exists is not None, "its state is known between two steps"
            if not book.exists:
                self._declare(talk, name)
                continue
            steps = (self._publish, self._publish, self._bind, self._bind, self._unbind)
            rare = (self._purge, self._delete, self._delete)
            generator.choice(steps if generator.random() < 0.8 else rare)(talk, name, generator)
            self.changes_count += 1

    def _declare(self, talk: Talk, name: str) -> None:
        book = self.books[name] = Book(exists=None)
        answer = talk.call(Queue.Declare(queue=name, durable=True))
        book.exists = True
        if answer.message_count:
            self.journal.violations.append(f"{name}: {answer.message_count} in a new queue")
        if name == NAMES[0]:
            talk.call(Queue.Bind(queue=name, exchange=self.fanout))

    def _bind(self, talk: Talk, name: str, generator: random.Random) -> None:
        key = self._key(name, generator)
        bound = self.books[name].bound
        if not bound.get(key):
            bound[key] = None
        talk.call(Queue.Bind(queue=name, exchange=EXCHANGE, routing_key=key))
        bound[key] = True

    def _unbind(self, talk: Talk, name: str, generator: random.Random) -> None:
        key = self._key(name, generator)
        bound = self.books[name].bound
        if bound.get(key):
            bound[key] = None
        talk.call(Queue.Unbind(queue=name, exchange=EXCHANGE, routing_key=key))
        bound[key] = False

    def _publish(self, talk: Talk, name: str, generator: random.Random) -> None:
        """Through every binding, and the default exchange."""
        book = self.books[name]
        for key, bound in (*book.bound.items(), ("", True)):
            if bound is not True:
                continue
            identities = self.journal.identities(self.publisher, generator.choice((1, 3)))
            book.routed.update(identities)
            method = Basic.Publish(
                exchange=EXCHANGE if key else "", routing_key=key or name, mandatory=True
            )
            for identity in identities:
                talk.send(method, content(talk, identity))
            first_tag, self._tag = self._tag, self._tag + len(identities)
            confirmed = 0
            while confirmed < len(identities):
                answer = talk.next()
                if isinstance(answer, Message):
                    self.journal.violations.append(f"{name}: {key!r} does not route to it")
                    continue
                assert isinstance(answer, Basic.Ack), answer
                upto = answer.delivery_tag - first_tag
                book.confirmed.update(identities[confirmed:upto])
                self.journal.confirm(identities[confirmed:upto])
                confirmed = upto

    def _purge(self, talk: Talk, name: str, generator: random.Random) -> None:
        book = self.books[name]
        book.confirmed.clear()
        talk.call(Queue.Purge(queue=name))
        self._gone(book)

    def _delete(self, talk: Talk, name: str, generator: random.Random) -> None:
        self.books[name].exists = None
        talk.call(Queue.Delete(queue=name))
        self.books[name] = Book()

    def _gone(self, book: Book) -> None:
        now = time.monotonic()
        for identity in book.routed:
            book.gone_at.setdefault(identity, now)

    @staticmethod
    def _key(name: str, generator: random.Random) -> str:
        return f"{name}.{generator.choice(KEYS)}"

    # -- after a restart ---------------------------------------------------------------------

    def verify(self, url: str, killed_at: float, understand: Understand) -> list[str]:
        """The broken promises. What is there afterwards is known again."""
        wrong: list[str] = []
        with Client(url) as client:
            number = 1
            for name, book in self.books.items():
                talk = client.channel(number)
                number += 1
                talk.send(Queue.Declare(queue=name, passive=True))
                there = isinstance(talk.next(), Queue.DeclareOk)
                if book.exists is not None and there is not book.exists:
                    state = "is" if there else "is not"
                    wrong.append(f"{name}: {state} there after the restart")
                if not there:
                    talk.send(Channel.CloseOk())
                    book = self.books[name] = Book()
                    continue
                book.exists = True
                self._verify_messages(talk, name, book, killed_at, understand, wrong)
                talk.close()
            talk = client.channel(number)
            talk.call(Exchange.Declare(exchange=EXCHANGE, exchange_type="direct", durable=True))
            for name, book in self.books.items():
                self._verify_bindings(talk, name, book, wrong)
        return wrong

    def _verify_messages(
        self,
        talk: Talk,
        name: str,
        book: Book,
        killed_at: float,
        understand: Understand,
        wrong: list[str],
    ) -> None:
        fanned = self.journal.queues[self.fanned].routed if name == NAMES[0] else set()
        seen: set[Identity] = set()
        last: dict[int, int] = {}
        while (message := talk.get(name)) is not None:
            delivery = understand(message)
            identity = delivery.identity
            gone_at = book.gone_at.get(identity)
            if gone_at is not None and gone_at < self.journal.horizon:
                early_s = killed_at - gone_at
                wrong.append(f"{name}: {identity} came back, gone {early_s:.3f} s before")
            if identity not in book.routed and identity not in fanned:
                wrong.append(f"{name}: {identity} is not expected here")
            if delivery.body != identity.body:
                wrong.append(f"{name}: {identity} has another body")
            if delivery.redelivered and gone_at is None and identity in book.routed:
                wrong.append(f"{name}: {identity} is flagged, and was never delivered")
            if identity.sequence <= last.get(identity.publisher, -1):
                wrong.append(f"{name}: {identity} twice, or out of order")
            last[identity.publisher] = identity.sequence
            seen.add(identity)
            talk.send(Basic.Ack(message.method.delivery_tag))
        owed = {identity for identity in book.confirmed if identity.is_persistent}
        wrong.extend(f"{name}: {identity} is lost" for identity in sorted(owed - seen))
        book.confirmed.clear()
        talk.call(Channel.Flow(active=True))
        self._gone(book)

    def _verify_bindings(self, talk: Talk, name: str, book: Book, wrong: list[str]) -> None:
        for key in KEYS:
            key = f"{name}.{key}"
            talk.send(
                Basic.Publish(exchange=EXCHANGE, routing_key=key, mandatory=True),
                encode_content(talk.number, b"", Basic.Properties(delivery_mode=1)),
                Channel.Flow(active=True),
            )
            routed = not isinstance(talk.next(), Message)
            if not routed:
                talk.expect(Channel.FlowOk)
            bound = book.bound.get(key, False)
            if bound is not None and routed is not bound:
                state = "is" if routed else "is not"
                wrong.append(f"{name}: the binding {key!r} {state} there after the restart")
            book.bound[key] = routed
        if book.exists:
            talk.call(Queue.Purge(queue=name))


def content(talk: Talk, identity: Identity) -> bytes:
    """Header and body frames of a message."""
    properties = Basic.Properties(
        message_id=str(identity), delivery_mode=2 if identity.is_persistent else 1
    )
    return encode_content(talk.number, identity.body, properties)
