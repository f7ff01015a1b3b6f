"""Replies carry the request's correlation id to where it asked for them."""

from __future__ import annotations

import pytest
from pamqp import commands, frame
from pamqp.header import ContentHeader

from benchmarks import wire
from benchmarks.rpc import REPLY_FLAGS, REQUEST_FLAGS, replier

BEFORE_FLAGS = bytes(12)  # class, weight, body size


def test_a_reply_goes_where_the_request_asked_for_it() -> None:
    properties = REQUEST_FLAGS + wire.shortstr("request 7") + wire.shortstr("amq.gen-queue")
    data = replier(b"body", 4096)(BEFORE_FLAGS + properties)
    parts = []
    while data:
        size, _, part = frame.unmarshal(data)
        data = data[size:]
        parts.append(part)
    method, header, body = parts
    assert isinstance(method, commands.Basic.Publish) and isinstance(header, ContentHeader)
    assert (method.exchange, method.routing_key) == ("", "amq.gen-queue")
    assert header.properties.correlation_id == "request 7"
    assert header.properties.reply_to is None
    assert body.value == b"body"  # type: ignore[union-attr]


def test_a_request_of_another_form_is_refused() -> None:
    with pytest.raises(wire.Refused, match="reply_to"):
        replier(b"", 4096)(BEFORE_FLAGS + REPLY_FLAGS + wire.shortstr("request 7"))
