"""A stream under load: what is at which offset stays there, and every message is there once.

Messages come from all publishers, alone and together with those of other queues; one thread reads
meanwhile. It promises: after a restart the offsets have no gap; what was read before a kill, or
after an earlier one, is at its offset; what is new was sent there, in each publisher's order, none
twice; and all of it that was confirmed is there, transient messages too. Retention takes from the
front.
"""

from __future__ import annotations

import random
from typing import Any

from pamqp.commands import Basic, Queue

from tests.crash.journal import Identity, Journal, QueueJournal
from tests.crash.passing import content
from tests.live.conversation import Client, Message, Talk

# Small, so that segments come and go, and yet more than a round brings.
ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "stream",
    "x-max-length-bytes": 24 << 20,
    "x-stream-max-segment-size-bytes": 1 << 20,
}
PREFETCH = 200
# A verification reads so many of the messages that it knows, or all.
KNOWN_COUNT = 500
ALL_SHARE = 0.2


class Streaming:
    """The book of the stream of that name. `publisher` is its number in the journal."""

    def __init__(self, journal: Journal, stream: str, publisher: int) -> None:
        self.stream = stream
        self.read_count = 0  # in verifications
        self._journal = journal
        self._publisher = publisher
        self._known: dict[int, Identity] = {}  # by offset
        self._end = 0  # behind what an earlier verification has found
        self._last: dict[int, int] = {}  # the last message of each publisher before that

    def declare(self, talk: Talk) -> None:
        """Make it, or find it as it was."""
        talk.call(Queue.Declare(queue=self.stream, durable=True, arguments=ARGUMENTS))

    def work(self, client: Client, generator: random.Random) -> None:
        """Read, from anywhere; ends when the broker does."""
        talk = client.channel()
        start = generator.choice(("first", "last", "next", max(self._end - KNOWN_COUNT, 0)))
        self._consume(talk, start)
        while True:
            message = talk.next()
            offset, identity = self._understood(message, self._journal.violations)
            self.note(offset, identity, self._journal.violations)
            talk.send(Basic.Ack(message.method.delivery_tag))

    def _consume(self, talk: Talk, start: str | int) -> str:
        talk.call(Basic.Qos(prefetch_count=PREFETCH))
        return talk.consume(self.stream, arguments={"x-stream-offset": start})

    def _understood(self, message: Message, wrong: list[str]) -> tuple[int, Identity]:
        headers: dict[str, Any] = message.properties.headers or {}
        identity = Identity.parse(message.properties.message_id)
        if message.body != identity.body:
            wrong.append(f"{self.stream}: {identity} has another body")
        return int(headers["x-stream-offset"]), identity

    def note(self, offset: int, identity: Identity, wrong: list[str]) -> None:
        """This was read at that offset: it is there now as ever."""
        known = self._known.setdefault(offset, identity)
        if known != identity:
            wrong.append(f"{self.stream}: {identity} is at {offset}, where {known} was")

    # -- after a restart

    def verify(self, url: str, generator: random.Random) -> list[str]:
        """The broken promises. What is there afterwards is known again."""
        wrong: list[str] = []
        with Client(url, deadline_s=30) as client:
            talk = client.channel()
            last = self._publish_one(talk)
            start: str | int = max(self._end - KNOWN_COUNT, 0)
            if generator.random() < ALL_SHARE:
                start = "first"
            found = self._read(client.channel(2), start, last, wrong)
        return wrong + self.judge(found)

    def judge(self, found: dict[int, Identity]) -> list[str]:
        """What is wrong with what was read, by offset, up to the end of the stream."""
        wrong: list[str] = []
        self.read_count += len(found)
        for offset, identity in found.items():
            self.note(offset, identity, wrong)
        offsets = list(found)
        first, end = offsets[0], offsets[-1] + 1
        if offsets != list(range(first, end)):
            wrong.append(f"{self.stream}: the offsets from {first} to {end} have gaps")
        if gone := [offset for offset in self._known if offset >= end]:
            wrong.append(f"{self.stream}: {gone} are gone")
        self._judge_new([found[at] for at in offsets if at >= self._end], first, wrong)
        self._end = end
        self._known = {at: found[at] for at in offsets[-2 * KNOWN_COUNT :]}
        return wrong

    def _publish_one(self, talk: Talk) -> Identity:
        """A message behind all others."""
        talk.confirm()
        (identity,) = self._journal.identities(self._publisher, 1)
        self._journal.sending([self.stream], [identity])
        talk.send(Basic.Publish(exchange="", routing_key=self.stream), content(talk, identity))
        talk.expect(Basic.Ack)
        self._journal.confirm([identity])
        return identity

    def _read(
        self, talk: Talk, start: str | int, last: Identity, wrong: list[str]
    ) -> dict[int, Identity]:
        found: dict[int, Identity] = {}
        tag = self._consume(talk, start)
        while True:
            message = talk.next()
            offset, identity = self._understood(message, wrong)
            if offset in found:
                wrong.append(f"{self.stream}: {offset} comes twice")
            found[offset] = identity
            if identity == last:
                break
            talk.send(Basic.Ack(message.method.delivery_tag))
        talk.call(Basic.Cancel(tag))
        return found

    def _judge_new(self, new: list[Identity], first: int, wrong: list[str]) -> None:
        routed = self._journal.queues[self.stream].routed
        for identity in new:
            if identity not in routed:
                wrong.append(f"{self.stream}: {identity} is not expected here")
            if identity.sequence <= self._last.get(identity.publisher, -1):
                wrong.append(f"{self.stream}: {identity} twice, or out of order")
            self._last[identity.publisher] = identity.sequence
        if first <= self._end:  # else retention was faster
            owed = self._journal.confirmed & routed
            lost = sorted(owed - set(new))
            wrong.extend(f"{self.stream}: {identity} is lost" for identity in lost)
        self._journal.queues[self.stream] = QueueJournal(self.stream)
