"""Long texts in JSON: read and written in pieces, to the same as in one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.http import long_texts
from qlog.server.http.long_texts import LongText, TooLong, without_long_texts
from tests.server.http.support import Site

PUBLISH = {"routing_key": "q", "properties": {}, "payload_encoding": "string"}
# What a piece could be cut in: characters of one to four octets, escapes, pairs of escapes.
TEXTS = st.text(st.sampled_from('aé\u20ac\U0001f600"\\/\b\n\x7f\u2028'), max_size=80)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is long from sixty octets on, and written in pieces of six."""
    monkeypatch.setattr(long_texts, "SHORT_BYTES_MAX", 60)
    monkeypatch.setattr(long_texts, "PIECE_BYTES", 6)


async def read(document: str) -> dict[str, Any]:
    rest, texts = await without_long_texts(document.encode())
    found: dict[str, Any] = json.loads(rest)
    for key, value in found.items():
        if value in texts:
            found[key] = (await texts[value].utf8()).decode()
    return found


@given(st.dictionaries(TEXTS.map(lambda text: text[:4]), TEXTS), st.booleans())
def test_what_is_read_is_what_was_written(document: dict[str, str], ascii_only: bool) -> None:
    written = json.dumps(document, ensure_ascii=ascii_only, indent=1)
    assert trio.run(read, written) == document


@given(TEXTS)
def test_a_text_is_written_as_json(text: str) -> None:
    async def written() -> bytes:
        assert await long_texts.is_text(text.encode())
        return b"".join([piece async for piece in long_texts.as_text(text.encode())])

    assert json.loads(b'"' + trio.run(written) + b'"') == text


@given(st.binary(max_size=40))
def test_octets_in_base64(octets: bytes) -> None:
    async def there_and_back() -> bytes:
        encoded = b"".join([piece async for piece in long_texts.as_base64(octets)])
        assert base64.b64decode(encoded, validate=True) == octets
        pieces = [memoryview(encoded)[at : at + 5] for at in range(0, len(encoded), 5)]
        return await LongText(pieces).from_base64()

    assert trio.run(there_and_back) == octets


@pytest.mark.parametrize(
    ("octets", "is_text"),
    [(b"", True), ("aaaaa\u20ac".encode(), True), (b"aaaaa\xe2\x82", False), (b"aa\xff", False)],
)
async def test_what_is_a_text(octets: bytes, is_text: bool) -> None:
    assert await long_texts.is_text(octets) is is_text


@pytest.mark.parametrize(
    "octets", [b"AA==AA==", b"AAAA=AAA", b"AAA", b"AA= ", b"A", b"####", b"AAAA\nAAA"]
)
async def test_what_is_no_base64(octets: bytes) -> None:
    for size in (1, 3, 4, 100):
        pieces = [memoryview(octets)[at : at + size] for at in range(0, len(octets), size)]
        with pytest.raises(ValueError):
            await LongText(pieces).from_base64()


@pytest.mark.parametrize(
    "document",
    [b'{"a":"bbb', b'{"a":"bbb\\', b'{"a":"bbb\x80b"}', b'"\\u12"'],
)
async def test_a_text_without_an_end(document: bytes) -> None:
    with pytest.raises(ValueError):
        await without_long_texts(document)


async def test_a_long_text_that_is_none() -> None:
    """Its end is found, but what is in it is no text of JSON."""
    for inside in (b"\n", b"\\x", b"\\ud83d", b"\xc3("):
        _, texts = await without_long_texts(b'"' + b"b" * 60 + inside + b'"')
        with pytest.raises(ValueError):
            await next(iter(texts.values())).utf8()


async def test_what_is_left_has_to_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "REST_BYTES_MAX", 200)
    for document in (b"[" + b"1," * 100 + b"]", b"[" + b'"a",' * 50 + b"]", b'"a"' + b" " * 200):
        with pytest.raises(TooLong):
            await without_long_texts(document)
    assert await without_long_texts(b"[" + b"1," * 50 + b"]") == (b"[" + b"1," * 50 + b"]", {})


async def test_a_long_payload(site: Site) -> None:
    """It is published as it is, in both encodings, and comes back so."""
    await site.ask("PUT", "queues/%2F/q", {})
    publish = "exchanges/%2F/amq.default/publish"
    text, octets = 'ü"\\\U0001f600' * 50, bytes(range(256))
    for payload, encoding in ((text, "string"), (base64.b64encode(octets).decode(), "base64")):
        document = {**PUBLISH, "payload": payload, "payload_encoding": encoding}
        assert (await site.ask("POST", publish, document)).document == {"routed": True}
    wanted = {"count": 2, "ackmode": "ack_requeue_true", "encoding": "auto"}
    first, second = (await site.ask("POST", "queues/%2F/q/get", wanted)).document
    assert (first["payload"], first["payload_encoding"]) == (text, "string")
    assert base64.b64decode(second["payload"]) == octets
    first, second = (await site.get("qlog/queues/%2F/q/messages"))["messages"]
    assert first["payload"] == text and base64.b64decode(second["payload"]) == octets


async def test_long_texts_that_are_refused(site: Site) -> None:
    await site.ask("PUT", "queues/%2F/q", {})
    publish = "exchanges/%2F/amq.default/publish"
    long = "x" * 80
    for document in (
        {**PUBLISH, "payload": "x", "properties": {"app_id": long}},
        {**PUBLISH, "payload": long, "routing_key": long},
        {**PUBLISH, "payload": "x", long: "x"},
    ):
        reply = await site.ask("POST", publish, document)
        assert (reply.status, reply.document["error"]) == (400, "payload_too_large")
    document = {**PUBLISH, "payload": "#" * 80, "payload_encoding": "base64"}
    reply = await site.ask("POST", publish, document)
    assert (reply.status, reply.reason[0]) == (400, "not_base64")
    broken = json.dumps({**PUBLISH, "payload": long}).replace("x" * 20, "x\nx", 1)
    reply = await site.ask("POST", publish, body=broken.encode())
    assert (reply.status, reply.reason[0]) == (400, "not_utf8")


async def test_few_large_bodies_at_a_time(site: Site) -> None:
    """A request gives its place back, whatever becomes of it."""
    free = site.context.large_bodies.value
    publish = "exchanges/%2F/amq.default/publish"
    for _ in range(free + 1):
        reply = await site.ask(
            "POST", publish, {**PUBLISH, "payload": "x" * 300_000, "properties": 1}
        )
        assert reply.status == 400
    assert site.context.large_bodies.value == free
