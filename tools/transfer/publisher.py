"""A publisher over AMQP 0-9-1: one connection, publisher confirms, no more.

Promises that a message which it calls confirmed was confirmed by the broker, and is in its queue.
Its calls wait, and say so when it takes long; a broker that says nothing for a minute counts as
gone, but one that lives may take as long as it likes to confirm. Knows nothing of files.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import NO_RECORD, Envelope
from qlog.server.amqp.frames import body_frames, header_frame, method_frame
from qlog.server.amqp.properties import RECORD_HEADER, with_header
from qlog.server.amqp.spec import Method
from qlog.tools.transfer.link import Address, Content, Link, LinkFailed

_PUBLISHING, _ASKING = 1, 2  # channels
_WAITING_MAX = 1000  # messages that are not confirmed yet
_WAITING_BYTES_MAX = 8 << 20
# A pause that takes so long is said: a disk may be slow, but not this slow.
SAID_S = 5.0


class PublishFailed(LinkFailed):
    """The broker did not take a message; `str()` is one line that says why."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that the broker has not answered for. `number` is what the caller calls it."""

    queue: str
    number: int
    size: int


class Publisher:
    """A connection to one vhost. All methods raise LinkFailed; use it as a context.

    `say` tells the user, a line at a time.
    """

    def __init__(self, address: Address, vhost: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._published = 0
        self._settled = 0  # the broker has answered for so many
        self._vhost = vhost
        self._waiting: OrderedDict[int, _Sent] = OrderedDict()  # by delivery tag
        self._waiting_bytes = 0
        self._refused: dict[int, tuple[int, str]] = {}  # delivery tag -> number, why
        self._over = False  # what publishes was closed
        self._queues: dict[str, str | None] = {}  # known queues, with an exchange of their own
        channels = {_ASKING: False, _PUBLISHING: True}
        self._link = Link(address, vhost, "qlog inspect import", self._handle, channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                for exchange in filter(None, self._queues.values()):
                    delete = spec.ExchangeDelete(exchange, False, False)
                    self._link.ask(_ASKING, delete, spec.ExchangeDeleteOk)
        finally:
            self._link.close(orderly=kind is None)

    @property
    def open_from(self) -> int | None:
        """The number of the first message that is not confirmed; None: all are."""
        oldest = next(iter(self._waiting.values()), None)
        numbers = [] if oldest is None else [oldest.number]
        return min([*numbers, *(number for number, _ in self._refused.values())], default=None)

    def find(self, queue: str) -> None:
        """Have the broker say that there is such a queue."""
        if queue not in self._queues:
            self._wait_while(lambda: self._link.blocked)
            passive = spec.QueueDeclare(queue, True, False, False, False, False, {})
            self._link.ask(_ASKING, passive, spec.QueueDeclareOk)
            self._queues[queue] = None

    def publish(self, queue: str, envelope: Envelope, body: bytes, number: int) -> None:
        """Send a message to a queue that was found; it need not be confirmed when this returns.

        Their numbers go up. Raises PublishFailed, with the number, also when an earlier message was
        refused.
        """
        self._wait_while(self._full)
        self._raise_refusal()
        exchange = ""
        if "CC" in (envelope.decoded_properties().headers or {}):
            exchange = self._exchange_of(queue)
        record = envelope.record
        if record is not NO_RECORD:  # the broker takes the header away, and remembers
            told = with_header(envelope.properties, RECORD_HEADER, record.as_table())
            envelope = envelope._replace(properties=told)
        publish = spec.BasicPublish(exchange, queue, True, False)
        self._link.send(
            method_frame(_PUBLISHING, publish),
            header_frame(_PUBLISHING, envelope),
            *body_frames(_PUBLISHING, body, self._link.frame_max),
            paused=lambda: self._say_why("takes nothing now"),
            paused_s=SAID_S,
        )
        self._published += 1
        self._waiting[self._published] = _Sent(queue, number, len(body))
        self._waiting_bytes += len(body)

    def wait(self) -> None:
        """Wait until the broker has answered for everything that was published, or has gone."""
        self._wait_while(lambda: bool(self._waiting) and not self._over)
        self._raise_refusal()

    # -- inside

    def _full(self) -> bool:
        """No more can be published now."""
        return (
            self._link.blocked
            or len(self._waiting) >= _WAITING_MAX
            or self._waiting_bytes > _WAITING_BYTES_MAX
        )

    def _wait_while(self, so: Callable[[], bool]) -> None:
        """Take what the broker sends as long as this is so; say it, once, when nothing is settled."""
        since_s, settled, said = time.monotonic(), self._settled, False
        while so():
            if settled != self._settled:
                since_s, settled = time.monotonic(), self._settled
            left_s = since_s + SAID_S - time.monotonic()
            if said:
                self._link.receive()
            elif left_s > 0:
                self._link.receive(left_s)
            else:
                said = True
                self._say_why("confirms nothing now")

    def _say_why(self, what: str) -> None:
        """Say what is waited for."""
        why = "has blocked publishers" if self._link.blocked else what
        self._say(f"waiting for the broker, which {why}")

    def _raise_refusal(self) -> None:
        if self._refused:
            number, why = self._refused[min(self._refused)]
            raise PublishFailed(f"message {number}: {why}")

    def _exchange_of(self, queue: str) -> str:
        """An exchange that leads to this queue alone, whatever other keys a message has."""
        exchange = self._queues[queue]
        if exchange is None:
            exchange = f"qlog.import.{secrets.token_hex(8)}"
            declare = spec.ExchangeDeclare(
                exchange, "fanout", False, False, False, False, False, {}
            )
            self._link.ask(_ASKING, declare, spec.ExchangeDeclareOk)
            self._queues[queue] = exchange
            self._link.ask(
                _ASKING, spec.QueueBind(queue, exchange, "", False, {}), spec.QueueBindOk
            )
        return exchange

    def _handle(self, channel: int, method: Method, content: Content | None) -> bool:
        match method:
            case spec.BasicAck():
                self._settle(method.delivery_tag, method.multiple)
            case spec.BasicNack():
                refused = self._settle(method.delivery_tag, method.multiple)
                for tag, sent in refused.items():
                    self._refused[tag] = sent.number, "the broker could not keep it (basic.nack)"
            case spec.BasicReturn():
                # It names the queue only, and a confirm of the same message follows it.
                self._return(method.routing_key, method.reply_text)
            case spec.ConnectionClose() | spec.ChannelClose():
                self._over |= channel != _ASKING
            case _:
                return False
        return True

    def _settle(self, tag: int, multiple: bool) -> dict[int, _Sent]:
        """Take the messages that the broker has answered for now."""
        tags = [one for one in self._waiting if one <= tag] if multiple else [tag]
        settled = {one: self._waiting.pop(one) for one in tags if one in self._waiting}
        self._waiting_bytes -= sum(sent.size for sent in settled.values())
        self._settled += len(settled)
        return settled

    def _return(self, queue: str, why: str) -> None:
        """The oldest unconfirmed message to the queue was returned: the queue is gone."""
        for tag, sent in self._waiting.items():
            if sent.queue == queue and tag not in self._refused:
                what = f"no queue '{queue}' in vhost '{self._vhost}' took it: {why}"
                self._refused[tag] = sent.number, what
                return
