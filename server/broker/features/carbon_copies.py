"""The routing keys of a message that has been published: its own, and those of CC and BCC."""

from __future__ import annotations

from qlog.server.amqp.envelope import NO_RECORD, Envelope
from qlog.server.amqp.properties import headers_of


def copies_of(raw: bytes) -> list[str]:
    """The further keys of a message with these properties that its publisher's CC header has."""
    copies = headers_of(raw, ("CC",)).get("CC")
    return [key for key in copies if isinstance(key, str)] if isinstance(copies, list) else []


def keys_of(envelope: Envelope) -> list[str]:
    """The message's own routing key, and all others that it goes by."""
    record = envelope.record
    copies = copies_of(envelope.properties) if record is NO_RECORD else record.keys
    return [envelope.routing_key, *copies]
