"""exchange.* and queue.* as a channel hears them: names made whole, access checked, replies sent."""

from __future__ import annotations

from typing import Protocol

from qlog.server.amqp import spec
from qlog.server.amqp.errors import access_refused, not_found, precondition_failed
from qlog.server.broker.channels.reply_to import REPLY_PREFIX, REPLY_TO
from qlog.server.broker.queues.type import Owner, QueueType
from qlog.server.broker.services import Services
from qlog.server.broker.vhost import VHost


class Channel(Protocol):
    """What is asked here of a channel. `last_queue` is the name it declared last."""

    last_queue: str

    @property
    def vhost(self) -> VHost: ...

    @property
    def client(self) -> Owner: ...

    @property
    def services(self) -> Services: ...

    def send(self, method: spec.Method) -> None:
        """Send a method on this channel."""


def _clean(name: str) -> str:
    """RabbitMQ strips line ends from the names of queues and exchanges."""
    return name.replace("\r", "").replace("\n", "")


def _not_default(exchange: str) -> None:
    if not exchange:
        raise access_refused("operation not permitted on the default exchange")


def find_queue(channel: Channel, name: str) -> QueueType:
    """The queue a method names, "" standing for the channel's last declared one. Raises 404, 405."""
    queue = channel.vhost.queue(queue_name(channel, name))
    channel.vhost.assert_access(queue, channel.client)
    return queue


def queue_name(channel: Channel, name: str) -> str:
    """A queue's name as methods give it. Raises 404 when "" stands for nothing."""
    if name:
        return _clean(name)
    if not channel.last_queue:
        raise not_found("no previously declared queue")
    return channel.last_queue


def exchange_declare(channel: Channel, method: spec.ExchangeDeclare) -> None:
    name = _clean(method.exchange)
    _not_default(name)
    if method.passive:
        channel.vhost.exchange(name)
    else:
        channel.vhost.declare_exchange(
            name,
            method.type,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            arguments=method.arguments,
        )
    if not method.nowait:
        channel.send(spec.ExchangeDeclareOk())


def exchange_delete(channel: Channel, method: spec.ExchangeDelete) -> None:
    name = _clean(method.exchange)
    _not_default(name)
    channel.vhost.delete_exchange(name, if_unused=method.if_unused)
    if not method.nowait:
        channel.send(spec.ExchangeDeleteOk())


def exchange_bind(channel: Channel, method: spec.ExchangeBind) -> None:
    _not_default(method.source)
    _not_default(method.destination)
    channel.vhost.bind(
        _clean(method.source),
        "exchange",
        _clean(method.destination),
        method.routing_key,
        method.arguments,
    )
    if not method.nowait:
        channel.send(spec.ExchangeBindOk())


def exchange_unbind(channel: Channel, method: spec.ExchangeUnbind) -> None:
    _not_default(method.source)
    _not_default(method.destination)
    channel.vhost.unbind(
        _clean(method.source),
        "exchange",
        _clean(method.destination),
        method.routing_key,
        method.arguments,
    )
    if not method.nowait:
        channel.send(spec.ExchangeUnbindOk())


def queue_declare(channel: Channel, method: spec.QueueDeclare) -> None:
    name = _clean(method.queue)
    if name == REPLY_TO or name.startswith(REPLY_PREFIX):
        _declare_reply_to(channel, name, method.nowait)
        return
    if method.passive:
        queue = find_queue(channel, name)
    else:
        queue = channel.vhost.declare_queue(
            name,
            channel.client,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=method.arguments,
        )
    channel.last_queue = queue.name
    if not method.nowait:
        channel.send(spec.QueueDeclareOk(queue.name, queue.ready, len(queue.takers)))


def _declare_reply_to(channel: Channel, name: str, nowait: bool) -> None:
    """The pseudo-queue is always there; an address only while its channel is."""
    if name != REPLY_TO and channel.services.replies.find(name) is None:
        raise not_found(f"no {channel.vhost.rs_queue(name)}")
    if not nowait:
        channel.send(spec.QueueDeclareOk(name, 0, 1))


def _queue_and_key(channel: Channel, method: spec.QueueBind | spec.QueueUnbind) -> tuple[str, str]:
    """With neither queue nor key given, the last declared queue stands for both."""
    name = queue_name(channel, method.queue)
    return name, method.routing_key or ("" if method.queue else name)


def queue_bind(channel: Channel, method: spec.QueueBind) -> None:
    name, key = _queue_and_key(channel, method)
    _not_default(method.exchange)
    queue = channel.vhost.queues.get(name)
    if queue is not None:
        channel.vhost.assert_access(queue, channel.client)
    channel.vhost.bind(_clean(method.exchange), "queue", name, key, method.arguments)
    if not method.nowait:
        channel.send(spec.QueueBindOk())


def queue_unbind(channel: Channel, method: spec.QueueUnbind) -> None:
    name, key = _queue_and_key(channel, method)
    _not_default(method.exchange)
    channel.vhost.unbind(_clean(method.exchange), "queue", name, key, method.arguments)
    channel.send(spec.QueueUnbindOk())


def queue_purge(channel: Channel, method: spec.QueuePurge) -> None:
    count = find_queue(channel, method.queue).purge()
    if not method.nowait:
        channel.send(spec.QueuePurgeOk(count))


def queue_delete(channel: Channel, method: spec.QueueDelete) -> None:
    count = 0
    name = queue_name(channel, method.queue)
    queue = channel.vhost.queues.get(name)
    if queue is not None:
        channel.vhost.assert_access(queue, channel.client)
        if method.if_unused and queue.takers:
            raise precondition_failed(f"{queue} in use")
        if method.if_empty and queue.ready:
            raise precondition_failed(f"{queue} not empty")
        count = channel.vhost.delete_queue(queue)
    if not method.nowait:
        channel.send(spec.QueueDeleteOk(count))
    if queue is not None:
        queue.cancel_takers()
