"""exchange.* and queue.* of a channel: completes names, asks operations.py, sends the replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from qlog.server.amqp import spec
from qlog.server.amqp.errors import not_found
from qlog.server.broker.channels.reply_to import REPLY_PREFIX, REPLY_TO
from qlog.server.broker.operations import Operations
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.type import Owner, QueueType
from qlog.server.broker.services import Services
from qlog.server.broker.vhost import VHost

T = TypeVar("T")


class Channel(Protocol):
    """What is asked here of a channel. `last_queue` is the name it declared last."""

    last_queue: str

    @property
    def vhost(self) -> VHost: ...

    @property
    def client(self) -> Owner: ...

    @property
    def services(self) -> Services: ...

    @property
    def operations(self) -> Operations: ...

    def answer(self, outcome: Outcome[T], reply: Callable[[T], spec.Method | None]) -> None:
        """Reply with what comes of an operation, now or when it is known."""


def _clean(name: str) -> str:
    """RabbitMQ strips line ends from the names of queues and exchanges."""
    return name.replace("\r", "").replace("\n", "")


def find_queue(channel: Channel, name: str) -> QueueType:
    """The queue of that name, to be read; "" is the channel's last declared one.

    Raises 403, 404 and 405.
    """
    return channel.operations.queue_to_read(
        channel.vhost, channel.client, queue_name(channel, name)
    )


def queue_name(channel: Channel, name: str) -> str:
    """A queue's name as methods give it. Raises 404 when "" stands for nothing."""
    if name:
        return _clean(name)
    if not channel.last_queue:
        raise not_found("no previously declared queue")
    return channel.last_queue


def _reply(channel: Channel, outcome: Outcome[None], ok: spec.Method, nowait: bool) -> None:
    """Say that it is done, when it is, if the client wants to hear that."""
    channel.answer(outcome, lambda _: None if nowait else ok)


def exchange_declare(channel: Channel, method: spec.ExchangeDeclare) -> None:
    name = _clean(method.exchange)
    operations, vhost = channel.operations, channel.vhost
    if method.passive:
        outcome = operations.assert_exchange(vhost, name)
    else:
        outcome = operations.declare_exchange(
            vhost,
            name,
            method.type,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            arguments=method.arguments,
        )
    _reply(channel, outcome, spec.ExchangeDeclareOk(), method.nowait)


def exchange_delete(channel: Channel, method: spec.ExchangeDelete) -> None:
    outcome = channel.operations.delete_exchange(
        channel.vhost, _clean(method.exchange), if_unused=method.if_unused
    )
    _reply(channel, outcome, spec.ExchangeDeleteOk(), method.nowait)


def exchange_bind(channel: Channel, method: spec.ExchangeBind) -> None:
    outcome = channel.operations.bind(
        channel.vhost,
        channel.client,
        _clean(method.source),
        "exchange",
        _clean(method.destination),
        method.routing_key,
        method.arguments,
    )
    _reply(channel, outcome, spec.ExchangeBindOk(), method.nowait)


def exchange_unbind(channel: Channel, method: spec.ExchangeUnbind) -> None:
    outcome = channel.operations.unbind(
        channel.vhost,
        channel.client,
        _clean(method.source),
        "exchange",
        _clean(method.destination),
        method.routing_key,
        method.arguments,
    )
    _reply(channel, outcome, spec.ExchangeUnbindOk(), method.nowait)


def queue_declare(channel: Channel, method: spec.QueueDeclare) -> None:
    name = _clean(method.queue)
    if name == REPLY_TO or name.startswith(REPLY_PREFIX):
        _declare_reply_to(channel, name, method.nowait)
        return

    def declared(queue: QueueType) -> spec.Method | None:
        channel.last_queue = queue.name
        if method.nowait:
            return None
        return spec.QueueDeclareOk(queue.name, queue.ready, queue.taker_count)

    operations, vhost, client = channel.operations, channel.vhost, channel.client
    if method.passive:
        outcome = operations.assert_queue(vhost, client, queue_name(channel, name))
    else:
        outcome = operations.declare_queue(
            vhost,
            client,
            name,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=method.arguments,
        )
    channel.answer(outcome, declared)


def _declare_reply_to(channel: Channel, name: str, nowait: bool) -> None:
    """The pseudo-queue is always there; an address only while its channel is."""
    if name != REPLY_TO and channel.services.replies.find(name).replies_to is None:
        raise not_found(f"no {channel.vhost.rs_queue(name)}")
    _reply(channel, Outcome.of(None), spec.QueueDeclareOk(name, 0, 1), nowait)


def _queue_and_key(channel: Channel, method: spec.QueueBind | spec.QueueUnbind) -> tuple[str, str]:
    """With neither queue nor key given, the last declared queue stands for both."""
    name = queue_name(channel, method.queue)
    return name, method.routing_key or ("" if method.queue else name)


def queue_bind(channel: Channel, method: spec.QueueBind) -> None:
    name, key = _queue_and_key(channel, method)
    outcome = channel.operations.bind(
        channel.vhost,
        channel.client,
        _clean(method.exchange),
        "queue",
        name,
        key,
        method.arguments,
    )
    _reply(channel, outcome, spec.QueueBindOk(), method.nowait)


def queue_unbind(channel: Channel, method: spec.QueueUnbind) -> None:
    name, key = _queue_and_key(channel, method)
    outcome = channel.operations.unbind(
        channel.vhost,
        channel.client,
        _clean(method.exchange),
        "queue",
        name,
        key,
        method.arguments,
    )
    _reply(channel, outcome, spec.QueueUnbindOk(), nowait=False)


def queue_purge(channel: Channel, method: spec.QueuePurge) -> None:
    name = queue_name(channel, method.queue)
    channel.answer(
        channel.operations.purge_queue(channel.vhost, channel.client, name),
        lambda count: None if method.nowait else spec.QueuePurgeOk(count),
    )


def queue_delete(channel: Channel, method: spec.QueueDelete) -> None:
    outcome = channel.operations.delete_queue(
        channel.vhost,
        channel.client,
        queue_name(channel, method.queue),
        if_unused=method.if_unused,
        if_empty=method.if_empty,
    )
    channel.answer(outcome, lambda count: None if method.nowait else spec.QueueDeleteOk(count))
