"""Values of AMQP's field tables in JSON, which has fewer types, and counts by RabbitMQ's names."""

from __future__ import annotations

import math
from typing import Any

from qlog.server.broker.stats import Counts


def json_value(value: Any) -> Any:
    """A value of a field table in JSON: octets become text, and what is no number null."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if hasattr(value, "items"):
        return {key: json_value(item) for key, item in value.items()}
    return str(value)


# What `delivery_counts` has.
COUNTED = (
    "deliver",
    "deliver_no_ack",
    "get",
    "get_no_ack",
    "get_empty",
    "deliver_get",
    "redeliver",
    "ack",
)


def delivery_counts(counts: Counts) -> dict[str, int]:
    """Deliveries and acknowledgements, empty if there were none."""
    taken = counts.deliver + counts.deliver_no_ack + counts.get + counts.get_no_ack
    if not (taken or counts.get_empty):
        return {}
    return {
        "deliver": counts.deliver,
        "deliver_no_ack": counts.deliver_no_ack,
        "get": counts.get,
        "get_no_ack": counts.get_no_ack,
        "get_empty": counts.get_empty,
        "deliver_get": taken,
        "redeliver": counts.redeliver,
        "ack": counts.ack,
    }
