"""A fixed load on a broker whose disk is going to fail at one call: what was asked for and answered.

It promises: always the same requests in the same order, one after the other, so that the n-th system
call of a kind is about the same in each run; between them all that the storage does happens: segments
roll, are sealed, compacted and given back, the ledger rolls, checkpoints are written. A connection
that the broker closes is opened again, as long as there is a broker.

`Notes.violations` knows what an answer promised. A request without an answer promises nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pamqp.commands import Basic, Channel, Connection, Exchange, Queue, Tx

from tests.crash.journal import Identity
from tests.images.books import Entry, Found
from tests.images.topology import FANOUT
from tests.live import conversation
from tests.live.conversation import Closed, Message, Talk, encode_content

WORK, KEPT = FANNED = ("injection.work", "injection.kept")
ANSWER_S_MAX = 8.0  # a full disk is tried again within a second
RECONNECTS_MAX = 5
# Long enough for checkpoints, a look for something to compact, and what follows from them.
REST_S = 0.45


class Refused(Exception):
    """The broker closed the channel or the connection, and said why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class Caller(conversation.Client):
    """A connection on which a close is an exception, and the broker's notices are counted."""

    notices: Counter[str]

    def _understand(self, frame: conversation.Frame) -> None:
        super()._understand(frame)
        inbox = self.inboxes.get(0)
        if inbox and isinstance(inbox[-1], (Connection.Blocked, Connection.Unblocked)):
            self.notices[inbox.pop().name] += 1

    def next(self, channel: int, deadline_s: float | None = None) -> Any:
        """What comes next on the channel. Raises Refused, Closed, Silence."""
        value = super().next(channel, deadline_s)
        if isinstance(value, (Connection.Close, Channel.Close)):
            scope = 0 if isinstance(value, Connection.Close) else channel
            with contextlib.suppress(Closed):
                self.send(scope, (Channel if scope else Connection).CloseOk())
            raise Refused(int(value.reply_code or 0), str(value.reply_text))
        return value


@dataclass
class Notes:
    """What was asked for, and what was answered."""

    sent: dict[str, set[Identity]] = field(default_factory=lambda: defaultdict(set))
    confirmed: set[Entry] = field(default_factory=set)
    acked: set[Entry] = field(default_factory=set)  # asked for
    settled: set[Entry] = field(default_factory=set)  # in a transaction that was committed
    declared: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    connected: bool = False
    refusals: list[Refused] = field(default_factory=list)
    cut: int = 0  # connections that ended without a word, once they were open
    notices: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)  # what no disk excuses
    silence: str = ""  # an answer did not come: only a disk that stays full excuses it

    @property
    def blocked(self) -> bool:
        """The broker said that it takes nothing, and has not taken that back."""
        return self.notices[Connection.Blocked.name] > self.notices[Connection.Unblocked.name]

    def violations(self, found: Found) -> list[str]:
        """What is wrong with what a start finds afterwards."""
        wrong: list[str] = []
        there = self.declared - self.deleting
        wrong += [f"{queue} is not there" for queue in sorted(there - found.queues.keys())]
        wrong += [f"{queue} is back" for queue in sorted(self.deleted & found.queues.keys())]
        wrong += [f"{queue} is not bound" for queue in sorted(self.bound - found.bound)]
        has: set[Entry] = set()
        for queue, messages in found.queues.items():
            for text, body in messages:
                identity = Identity.parse(text)
                if (queue, identity) in has:
                    wrong.append(f"{queue}: {identity} twice")
                has.add((queue, identity))
                if identity not in self.sent[queue] or body != identity.body:
                    wrong.append(f"{queue}: {identity} is not what was sent")
        owed = {entry for entry in self.confirmed - self.acked if entry[0] in there}
        for queue, identity in sorted(owed - has):
            wrong.append(f"{queue}: {identity} is lost, it was confirmed")
        for queue, identity in sorted(self.settled & has):
            wrong.append(f"{queue}: {identity} is back, its transaction was committed")
        return wrong


class Script:
    """One run of the load. `alive` says whether the broker's process is still there."""

    def __init__(self, url: str, alive: Callable[[], bool]) -> None:
        self.notes = Notes()
        self._url = url
        self._alive = alive
        self._sequence = 0
        self._caller: Caller | None = None
        self._talk: Talk | None = None
        self._reconnects = 0
        self._tags: dict[int, list[Entry]] = {}
        self._next_tag = 1

    def run(self) -> Notes:
        """All of it, or until the broker ends."""
        acts: list[Callable[[Talk], None]] = [
            *[lambda talk: self._publish(talk, ("", WORK), 12)] * 5,
            lambda talk: self._work(talk, 60),
            self._rest,
            *[lambda talk: self._publish(talk, (FANOUT, ""), 12)] * 6,
            lambda talk: self._work(talk, 70),
            self._thin_out,
            self._rest,
            self._short_lived,
            lambda talk: self._publish(talk, ("", KEPT), 6),
            self._transaction,
            self._rest,
            lambda talk: self._publish(talk, (FANOUT, ""), 12),
            lambda talk: self._work(talk, 10),
        ]
        for act in acts:
            if not self._act(act):
                break
        if self._caller is not None:
            self._last_words()
            self._caller.abort()
        return self.notes

    def _act(self, act: Callable[[Talk], None]) -> bool:
        """Do it, on a new connection if need be; False when the broker is gone."""
        try:
            talk = self._talk or self._connect()
            if not self._is_declared:
                self._declare(talk)
            act(talk)
        except Refused as error:
            self.notes.refusals.append(error)
        except Closed:
            self.notes.cut += self._talk is not None
        except ConnectionRefusedError:
            return False
        except conversation.Silence as error:
            self.notes.silence = str(error)
            return False
        except AssertionError as error:  # an answer that should not be
            self.notes.trouble.append(str(error))
            return False
        else:
            return True
        assert self._caller is not None
        self._caller.abort()
        self._caller = self._talk = None
        self._reconnects += 1
        for _ in range(20):  # a broker that is ending may take a moment
            if not self._alive():
                return False
            time.sleep(0.02)
        return self._reconnects <= RECONNECTS_MAX

    def _connect(self) -> Talk:
        caller = Caller(self._url, handshake=False, deadline_s=ANSWER_S_MAX)
        caller.notices = self.notes.notices
        self._caller = caller
        caller.handshake()
        self.notes.connected = True
        self._talk = talk = caller.channel()
        talk.confirm()
        self._tags = {}
        self._next_tag = 1
        return talk

    def _last_words(self) -> None:
        """What the broker says of its own accord, if it is about to end."""
        assert self._caller is not None
        try:
            self._caller.next(0, 0.05)
        except Refused as error:
            self.notes.refusals.append(error)
        except (Closed, AssertionError):
            return

    # -- acts

    def _rest(self, talk: Talk) -> None:
        """Leave the broker alone; notice if it closes the connection meanwhile."""
        end = time.monotonic() + REST_S
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(conversation.Silence):
                talk.next(left)

    @property
    def _is_declared(self) -> bool:
        return self.notes.bound.issuperset(FANNED)

    def _declare(self, talk: Talk) -> None:
        """Before all else, and again until all of it was answered."""
        talk.call(Exchange.Declare(exchange=FANOUT, exchange_type="fanout", durable=True))
        for queue in FANNED:
            self._declare_queue(talk, queue)
            talk.call(Queue.Bind(queue=queue, exchange=FANOUT))
            self.notes.bound.add(queue)

    def _declare_queue(self, talk: Talk, queue: str) -> None:
        talk.call(Queue.Declare(queue=queue, durable=True))
        self.notes.declared.add(queue)

    def _identities(self, queues: Iterable[str], count: int) -> list[Identity]:
        identities: list[Identity] = []
        while len(identities) < count:  # all persistent
            identity = Identity(1, self._sequence)
            self._sequence += 1
            if identity.is_persistent:
                identities.append(identity)
        for queue in queues:
            self.notes.sent[queue].update(identities)
        return identities

    def _send(self, talk: Talk, route: tuple[str, str], identities: Iterable[Identity]) -> None:
        pieces: list[Any] = []
        for identity in identities:
            properties = Basic.Properties(message_id=str(identity), delivery_mode=2)
            pieces.append(Basic.Publish(exchange=route[0], routing_key=route[1]))
            pieces.append(encode_content(talk.number, identity.body, properties))
        talk.send(*pieces)

    def _publish(
        self, talk: Talk, route: tuple[str, str], count: int, queues: tuple[str, ...] = ()
    ) -> None:
        """Publish and wait for all confirms."""
        queues = queues or (FANNED if route[0] else route[1:])
        identities = self._identities(queues, count)
        for identity in identities:
            self._tags[self._next_tag] = [(queue, identity) for queue in queues]
            self._next_tag += 1
        self._send(talk, route, identities)
        while self._tags:
            value = talk.next()
            assert isinstance(value, Basic.Ack), f"{conversation.show(value)} for a publish"
            upto = int(value.delivery_tag)
            tags = [tag for tag in self._tags if tag <= upto] if value.multiple else [upto]
            for tag in tags:
                self.notes.confirmed.update(self._tags.pop(tag))

    def _take(self, talk: Talk, queue: str) -> tuple[Entry, int] | None:
        message = talk.get(queue)
        if message is None:
            return None
        assert isinstance(message, Message)
        identity = Identity.parse(message.properties.message_id)
        assert message.body == identity.body, f"{identity} is corrupt"
        return (queue, identity), message.method.delivery_tag

    def _work(self, talk: Talk, count: int) -> None:
        """Take and acknowledge."""
        for _ in range(count):
            taken = self._take(talk, WORK)
            if taken is None:
                break
            self.notes.acked.add(taken[0])
            talk.send(Basic.Ack(taken[1]))

    def _thin_out(self, talk: Talk) -> None:
        """Acknowledge all but every tenth: something for compaction."""
        for number in range(60):
            taken = self._take(talk, KEPT)
            if taken is not None and number % 10:
                self.notes.acked.add(taken[0])
                talk.send(Basic.Ack(taken[1]))

    def _short_lived(self, talk: Talk) -> None:
        """A queue that comes and goes."""
        queue = f"injection.short.{self._reconnects}"
        self._declare_queue(talk, queue)
        self._publish(talk, ("", queue), 2, (queue,))
        self.notes.deleting.add(queue)
        talk.call(Queue.Delete(queue=queue))
        self.notes.deleted.add(queue)

    def _transaction(self, talk: Talk) -> None:
        """Acks and publishes that are settled together."""
        assert self._caller is not None
        talk = self._caller.channel(2)
        talk.call(Tx.Select())
        identities = self._identities([WORK], 3)
        self._send(talk, ("", WORK), identities)
        entries: list[Entry] = []
        for _ in range(5):
            taken = self._take(talk, WORK)
            if taken is not None:
                self.notes.acked.add(taken[0])
                entries.append(taken[0])
                talk.send(Basic.Ack(taken[1]))
        talk.call(Tx.Commit())
        self.notes.confirmed.update((WORK, identity) for identity in identities)
        self.notes.settled.update(entries)
        talk.close()
