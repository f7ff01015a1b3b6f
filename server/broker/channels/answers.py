"""The replies of one channel, in order, and what its client sent that has to wait for them.

Most operations count at once, and only their replies wait for the disk. Such operations need not
wait for each other: what a client pipelines shares the disk's syncs. Promises that replies leave in
the order in which they were asked for, each when its outcome is known, an error after the replies
before it; and that the client's other events wait until no reply is due, so that what it sees of
them is as if it had waited for each reply. What one client can have waiting is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from qlog.server.amqp import spec
from qlog.server.amqp.connection import ChannelCore, Event, MethodReceived
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.channels.sink import Sink
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.outcome import Outcome

T = TypeVar("T")

# So many outcomes of one client are waited for. To tell them takes some milliseconds.
WAITING_MAX = 500

# What only asks operations.py, and so leaves its reply, and nothing else, to this file.
PIPELINED = frozenset(
    {
        spec.ExchangeBind,
        spec.ExchangeDeclare,
        spec.ExchangeDelete,
        spec.ExchangeUnbind,
        spec.QueueBind,
        spec.QueueDeclare,
        spec.QueueDelete,
        spec.QueuePurge,
        spec.QueueUnbind,
    }
)

Reply = Callable[[T], spec.Method | None]


class Asking(Protocol):
    """The client of a channel."""

    answers_waiting: int  # how many outcomes all of its channels wait for

    @property
    def over(self) -> bool:
        """Nothing may be sent to it any more."""

    def failed(self, event: Event, error: Exception) -> None:
        """What the client sent could not be obeyed."""

    def hold_event(self) -> None:
        """An event waits."""

    def release_event(self) -> None:
        """An event waits no more."""

    def may_resume(self, event: Event) -> bool:
        """Whether to go on with what a channel held. If not, `Answers.go_on` is called later."""

    def resume(self, answers: Answers, event: Event) -> None:
        """Obey what a channel has held back."""


class Speaking(Protocol):
    """The channel, as far as something is sent on it. `core.closed`: nothing may be."""

    number: int
    sink: Sink
    core: ChannelCore


class Waiting(NamedTuple):
    """A reply that cannot be sent yet. Not `due`: the client wants none, but hears of an error."""

    event: Event
    outcome: Outcome[Any]
    reply: Reply[Any]
    due: bool


def nothing(_: object) -> None:
    """No reply."""


# What a channel has that never waited for anything: an empty deque takes 600 bytes.
_NO_WAITING: deque[Waiting] = deque(maxlen=0)
_NO_EVENTS: deque[Event] = deque(maxlen=0)


class Answers:
    """See the head of this file. It does not know the channel itself: they would hold each other."""

    __slots__ = (
        "_channel",
        "_client",
        "_due",
        "_held",
        "_jobs",
        "_resuming",
        "_stopped",
        "_taken",
        "_waiting",
    )

    def __init__(self, client: Asking, channel: Speaking, jobs: Jobs) -> None:
        self._client = client
        self._channel = channel
        self._jobs = jobs
        self._waiting = _NO_WAITING
        self._due = 0  # how many of them have a reply
        self._stopped = False  # all events wait until nothing is waited for
        self._held = _NO_EVENTS
        self._resuming = False  # a job takes what was held
        self._taken = False  # it has taken an event, which is being obeyed

    def holds(self, event: Event) -> bool:
        """Whether an event that the client sent has to wait: it is to be given to `hold`."""
        if not (self._due or self._stopped or self._held):
            return False  # as it mostly is
        return not self._taken and (bool(self._held) or self._blocks(event))

    def hold(self, event: Event) -> None:
        """Let the event wait."""
        if self._held is _NO_EVENTS:
            self._held = deque()
        self._held.append(event)
        self._client.hold_event()

    def _blocks(self, event: Event) -> bool:
        if self._stopped or not self._due:
            return self._stopped
        return not (isinstance(event, MethodReceived) and type(event.method) in PIPELINED)

    def answer(self, event: Event, outcome: Outcome[T], reply: Reply[T]) -> None:
        """Reply with the outcome of an operation, now or when it is known.

        If the operation has failed, its error is raised, or closes the channel or the connection
        later. What counts before it is known (`Outcome.effect`) is what the reply tells.
        """
        if outcome.done and not self._waiting:
            method = reply(outcome.result())
            if method is not None:
                self._send(method)
            return
        if not outcome.effect.succeeded:
            self._stopped = True
            self._wait(Waiting(event, outcome, reply, due=True))
        elif outcome.done:
            self._wait(Waiting(event, outcome, reply, due=reply is not nothing))
        else:
            told = reply(outcome.effect.result())
            self._wait(Waiting(event, outcome, lambda _: told, due=told is not None))

    def refuse(self, event: Event, error: AMQPError) -> None:
        """The event cannot be obeyed: the client hears so after the replies that are due.

        Raises the error if none is.
        """
        if not self._due:
            raise error

        def fail(_: object) -> None:
            raise error

        self._stopped = True
        self._wait(Waiting(event, Outcome.of(None), fail, due=True))

    def _wait(self, waiting: Waiting) -> None:
        client = self._client
        if self._waiting is _NO_WAITING:
            self._waiting = deque()
        self._waiting.append(waiting)
        self._due += waiting.due
        client.answers_waiting += 1
        if client.answers_waiting >= WAITING_MAX:
            self._stopped = True
        waiting.outcome.then(self._known)

    def _known(self, _: Outcome[Any]) -> None:
        """Send the replies whose turn it is."""
        waiting, client = self._waiting, self._client
        while waiting and waiting[0].outcome.done:
            event, outcome, reply, due = waiting.popleft()
            client.answers_waiting -= 1
            self._due -= due
            if self._channel.core.closed or client.over:
                continue
            try:
                method = reply(outcome.result())
                if method is not None:
                    self._send(method)
            except Exception as error:  # noqa: BLE001 - the client hears of it
                client.failed(event, error)
        if not waiting:
            self._stopped = False
        self.go_on()

    def _send(self, method: spec.Method) -> None:
        self._channel.sink.send(self._channel.number, method)

    def go_on(self) -> None:
        """Begin to obey what was held, if it need not wait any more."""
        if self._held and not self._resuming and not self._blocks(self._held[0]):
            self._resuming = True
            self._jobs.later(self._resume())

    def _resume(self) -> Steps[None]:
        """Obey what was held, up to what has to wait again."""
        held, client = self._held, self._client
        while held and not self._blocks(held[0]) and client.may_resume(held[0]):
            client.release_event()
            self._taken = True
            try:
                client.resume(self, held.popleft())
            finally:
                self._taken = False
            yield
        self._resuming = False
