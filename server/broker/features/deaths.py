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

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from qlog.server.amqp.envelope import NO_RECORD, Envelope, Record
from qlog.server.amqp.properties import CC, Traits, examine, headers_of, raw_headers, with_headers
from qlog.server.amqp.values import Int64, Table, Timestamp, encode_value, join_arrays
from qlog.server.broker.features.carbon_copies import copies_of

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

    `deaths` is its `x-death`, encoded, which has the death that it leaves by first.
    """

    envelope: Envelope
    traits: Traits
    keys: list[str]
    deaths: bytes

    def would_cycle(self, queue: str) -> bool:
        """Whether the message came from that queue by no client's doing.

        Such a message would go round for ever. A rejection on the way is a client's doing.
        """
        if _queue_entry(queue) not in self.deaths:
            return False  # as nearly always
        deaths: Any = self.envelope.headers()["x-death"]
        for death in deaths:
            if death["reason"] == REJECTED:
                return False
            if death["queue"] == queue:
                return True
        return False


def copy_of(envelope: Envelope, death: Death) -> Copy:
    """The message as it leaves a queue."""
    record, raw = envelope.record, envelope.properties
    traits, _ = examine(raw)
    if record is NO_RECORD:
        keys = copies_of(raw) if traits.needs & CC else []
    else:
        keys = record.keys
    shown = [envelope.routing_key, *keys]
    for hidden in record.hidden:
        if hidden in shown:
            shown.remove(hidden)
    expiration = None if traits.expiration is None else str(traits.expiration)
    headers = raw_headers(raw)
    if record.died:
        before = headers[b"x-death"]
        if _queue_entry(death.queue) in before:
            entries = _one_more(raw, death, envelope.exchange, shown, expiration)
            deaths = encode_value(entries)
        else:
            first = _raw_first(death, envelope.exchange, tuple(shown), expiration)[b"x-death"]
            deaths = join_arrays(first, before)
        headers[b"x-death"] = deaths
        headers.update(_raw_story("last", envelope.exchange, death.queue, death.reason))
    else:
        headers.update(_raw_first(death, envelope.exchange, tuple(shown), expiration))
        deaths = headers[b"x-death"]
    # The keys of CC are known, and BCC is gone: nothing has to be looked at again.
    traits = traits._replace(expiration=None, needs=traits.needs & ~CC)
    if death.key is None:
        key = envelope.routing_key
    else:
        key, keys = death.key, []
    copy = Envelope.pack(
        death.exchange,
        key,
        with_headers(raw, headers),
        envelope.body_size,
        Record(True, keys, record.hidden),
    )
    return Copy(copy, traits, [key, *keys], deaths)


def _one_more(
    raw: bytes, death: Death, exchange: str, keys: Sequence[str], expiration: str | None
) -> list[Any]:
    """The deaths of a dead letter that dies in a queue again: one counts one more, or is new."""
    deaths: Any = headers_of(raw, ("x-death",))["x-death"]
    others = []
    latest = None
    for entry in deaths:
        if (entry["queue"], entry["reason"]) == (death.queue, death.reason):
            latest = {**entry, "count": Int64(entry["count"] + 1)}
        else:
            others.append(entry)
    return [latest or _entry(death, exchange, keys, expiration), *others]


def _entry(death: Death, exchange: str, keys: Sequence[str], expiration: str | None) -> Table:
    """The entry of a first death from this queue, for this reason."""
    entry: Table = {} if expiration is None else {"original-expiration": expiration}
    entry.update(
        {
            "count": Int64(1),
            "reason": death.reason,
            "queue": death.queue,
            "time": Timestamp(death.time_s),
            "exchange": exchange,
            "routing-keys": list(keys),
        }
    )
    return entry


@lru_cache(maxsize=64)  # messages that leave a queue one after the other mostly have the same
def _raw_first(
    death: Death, exchange: str, keys: tuple[str, ...], expiration: str | None
) -> dict[bytes, bytes]:
    """The headers of a first death."""
    return {
        b"x-death": encode_value([_entry(death, exchange, keys, expiration)]),
        **_raw_story("first", exchange, death.queue, death.reason),
        **_raw_story("last", exchange, death.queue, death.reason),
    }


def _queue_entry(queue: str) -> bytes:
    """The octets by which an entry of `x-death` names its queue. Others may contain them, too."""
    return b"\x05queue" + encode_value(queue)


@lru_cache(maxsize=64)
def _raw_story(which: str, exchange: str, queue: str, reason: str) -> dict[bytes, bytes]:
    prefix = f"x-{which}-death-"
    return {
        f"{prefix}exchange".encode(): encode_value(exchange),
        f"{prefix}queue".encode(): encode_value(queue),
        f"{prefix}reason".encode(): encode_value(reason),
    }
