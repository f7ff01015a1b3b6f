"""What a dead letter tells of itself: `x-death` and the other headers, and the keys it goes by.

Promises the headers of RabbitMQ 4.0 (mc:record_death, mc_amqpl), which was asked:

- `x-death` is an array of tables, the newest death first, one for each queue and reason. A table
  has `count` (long), `reason`, `queue`, `time` of the first of these deaths (timestamp, seconds),
  `exchange` and `routing-keys`, and before them `original-expiration` if the message had one.
  `routing-keys` are the message's own key and those of its CC header, not those of BCC.
- `x-first-death-…` and `x-last-death-…` have exchange, queue and reason of the first death and of
  the last one.
- The expiration is taken away. All other properties stay, and headers are sorted by their names.
- What a client wrote into these headers is replaced, and counts for nothing: only the broker's own
  record of earlier deaths (`Envelope.record`) says that `x-death` is the broker's.

Knows no queues: names in, an envelope out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from qlog.server.amqp.envelope import NO_RECORD, Envelope, Record
from qlog.server.amqp.properties import (
    CC,
    Properties,
    Traits,
    encode_properties,
    examine,
    expiration_complaint,
)
from qlog.server.amqp.values import Int64, Table, Timestamp, Value

REJECTED = "rejected"


class Death(NamedTuple):
    """A queue that messages leave, and why: one of RabbitMQ's reasons.

    `exchange` is where they go (the dead-letter exchange), `key` the routing key that they go by;
    None: by their own. `time_s` is the wall clock, in seconds.
    """

    queue: str
    reason: str
    exchange: str
    key: str | None
    time_s: int


class Copy(NamedTuple):
    """A message as it leaves a queue: its envelope, its traits, and the keys it is routed by.

    `earlier` are its deaths, this one included, the newest first: queue and reason.
    """

    envelope: Envelope
    traits: Traits
    keys: list[str]
    earlier: list[tuple[str, str]]

    def would_cycle(self, queue: str) -> bool:
        """Whether the message came from that queue by no client's doing.

        Such a message would go round for ever. A rejection on the way is a client's doing.
        """
        for source, reason in self.earlier:
            if reason == REJECTED:
                return False
            if source == queue:
                return True
        return False


def copy_of(envelope: Envelope, death: Death) -> Copy:
    """The message as it leaves a queue."""
    record = envelope.record
    properties = envelope.decoded_properties()
    headers: Table = {} if properties.headers is None else properties.headers
    keys = record.keys if record is not NO_RECORD else _copies(headers)
    deaths = headers.get("x-death") if record.died else None
    assert deaths is None or isinstance(deaths, list), "the broker wrote it"
    before: list[Any] = [] if deaths is None else deaths
    entry = _entry(before, envelope, keys, record.hidden, properties, death)
    latest: list[Any] = [entry]
    latest += (other for other in before if not _same(other, death))
    changed: Table = {**headers, "x-death": latest}
    for name, value in (
        ("exchange", envelope.exchange),
        ("queue", death.queue),
        ("reason", death.reason),
    ):
        if not record.died:
            changed[f"x-first-death-{name}"] = value
        changed[f"x-last-death-{name}"] = value
    properties.headers = dict(sorted(changed.items(), key=_octets))
    properties.expiration = None
    traits, raw = examine(encode_properties(properties))
    if death.key is None:
        key, record = envelope.routing_key, Record(True, keys, record.hidden)
    else:
        key, keys = death.key, []
        record = Record(True, keys, record.hidden)
    copy = Envelope.pack(death.exchange, key, raw, envelope.body_size, record)
    # The keys of CC are known, and BCC is gone: nothing has to be looked at again.
    traits = traits._replace(needs=traits.needs & ~CC)
    earlier = [(each["queue"], each["reason"]) for each in latest]
    return Copy(copy, traits, [key, *keys], earlier)


def _entry(
    before: list[Any],
    envelope: Envelope,
    keys: list[str],
    hidden: list[str],
    properties: Properties,
    death: Death,
) -> Table:
    """The entry for this death: the one that there is with a higher count, or a new one."""
    for entry in before:
        if _same(entry, death):
            return {**entry, "count": Int64(entry["count"] + 1)}
    shown: list[Value] = [envelope.routing_key, *keys]
    for key in hidden:
        if key in shown:
            shown.remove(key)
    entry = {
        "count": Int64(1),
        "reason": death.reason,
        "queue": death.queue,
        "time": Timestamp(death.time_s),
        "exchange": envelope.exchange,
        "routing-keys": shown,
    }
    expiration = properties.expiration
    if expiration is None or expiration_complaint(expiration) is not None:
        return entry
    return {"original-expiration": str(int(expiration)), **entry}


def _same(entry: Table, death: Death) -> bool:
    return (entry["queue"], entry["reason"]) == (death.queue, death.reason)


def _copies(headers: Table) -> list[str]:
    """The further keys of a message that its publisher's CC header has."""
    copies = headers.get("CC")
    return [key for key in copies if isinstance(key, str)] if isinstance(copies, list) else []


def _octets(item: tuple[str, Value]) -> bytes:
    return item[0].encode("utf-8", "surrogateescape")
