"""Definitions, as RabbitMQ's JSON: written, and loaded after a rehearsal."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote

from qlog.server.broker.operations import DefinitionsError, VHost
from qlog.server.http.answers import NO_CONTENT, Answer, encode
from qlog.server.http.ask import Ask
from qlog.server.http.context import DefinitionsFile
from qlog.server.http.documents import read_object
from qlog.server.http.pace import ITEMS_AT_ONCE, Pace
from qlog.server.http.refusals import Refusal, bad_request, refusal
from qlog.server.http.table import Endpoint

SECTIONS = ("parameters", "policies", "exchanges", "queues", "bindings")
_BOUNDARY = re.compile(rb'boundary="?([^";]+)"?')
_CONTENT_BYTES = 64 * 1024


def _file(ask: Ask) -> DefinitionsFile:
    assert ask.context.definitions is not None
    return ask.context.definitions


def _vhost(ask: Ask, error: Refusal) -> VHost:
    for vhost in ask.operations.vhosts():
        if vhost.name == ask.path["vhost"]:
            return vhost
    raise error


async def export(ask: Ask) -> Answer:
    """All definitions."""
    document = await ask.settled(_file(ask).export_definitions())
    name = ask.operations.about().cluster_name
    about = {"original_cluster_name": name, "explanation": f"Definitions of cluster '{name}'"}
    return _download(ask, {**document, **about})


async def export_vhost(ask: Ask) -> Answer:
    """The definitions of a vhost."""
    vhost = _vhost(ask, bad_request("vhost_not_found"))
    document = await ask.settled(_file(ask).export_definitions(vhost))
    about = {"explanation": f"Definitions of virtual host '{vhost.name}'"}
    return _download(ask, {**document, **about})


def _download(ask: Ask, document: dict[str, Any]) -> Answer:
    headers: dict[str, str] = {}
    if "download" in ask.query:
        name = quote(ask.query["download"], safe=".-_")
        headers["content-disposition"] = f"attachment; filename={name}"
    return Answer(body=_written(document), headers=headers)


async def _written(document: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The document in chunks: its arrays item by item."""
    pace = Pace()
    parts: list[bytes] = []
    size = 0
    for number, (key, value) in enumerate(document.items()):
        parts.append((b"," if number else b"{") + encode(key) + b":")
        if not isinstance(value, list):
            parts.append(encode(value))
            continue
        parts.append(b"[")
        for place, item in enumerate(value):
            parts.append((b"," if place else b"") + encode(item))
            size += len(parts[-1])
            if size >= _CONTENT_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
            if not place % ITEMS_AT_ONCE:
                await pace.rest()
        parts.append(b"]")
    yield b"".join(parts) + b"}"


async def load(ask: Ask) -> Answer:
    """Load definitions: all of them, or nothing if one of them cannot be had."""
    await _load(ask, await _document(ask))
    return NO_CONTENT


async def check(ask: Ask) -> dict[str, Any]:
    """Whether definitions could be loaded, and what would be left out. Nothing is changed."""
    try:
        left_out = await ask.settled(_file(ask).check_definitions(await _document(ask)))
    except DefinitionsError as error:
        raise bad_request(str(error)) from None
    return {"left_out": left_out}


async def load_vhost(ask: Ask) -> Answer:
    """Load definitions into a vhost."""
    vhost = _vhost(ask, refusal(404, "not_found", "vhost_not_found"))
    given = await _document(ask)
    document: dict[str, Any] = {}
    for section in SECTIONS:
        items = given.get(section) or []
        if isinstance(items, list):
            items = [
                {**item, "vhost": vhost.name} if isinstance(item, dict) else item for item in items
            ]
        document[section] = items
    await _load(ask, document)
    return NO_CONTENT


async def _load(ask: Ask, document: dict[str, Any]) -> None:
    file = _file(ask)
    try:
        await ask.settled(file.check_definitions(document))
        await ask.settled(file.load_definitions(document, ask.operations))
    except DefinitionsError as error:
        raise bad_request(str(error)) from None


async def _document(ask: Ask) -> dict[str, Any]:
    """The document of a request: its body, or the file of a form. Raises 400."""
    body = await ask.body()
    content_type = ask.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        body = _file_of_form(body, content_type)
    try:
        return await read_object(body)
    except (ValueError, RecursionError):
        raise bad_request("failed_to_parse_json") from None


def _file_of_form(body: bytes, content_type: str) -> bytes:
    """The part called `file` of a form (RFC 7578); empty if there is none."""
    boundary = _BOUNDARY.search(content_type.encode("latin-1", "replace"))
    if boundary is None:
        return b""
    for part in body.split(b"--" + boundary[1]):
        head, found, content = part.partition(b"\r\n\r\n")
        if found and b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    return b""


_DOWNLOAD = {"download": "the name of a file that a browser keeps it in"}
_ARRAY = {"type": "array", "items": {"type": "object"}}
_BODY = {
    name: _ARRAY
    for name in (
        "users",
        "vhosts",
        "permissions",
        "topic_permissions",
        "global_parameters",
        *SECTIONS,
    )
}

ENDPOINTS = [
    Endpoint(
        "GET", "/definitions", export, "All definitions", tag="administrator", query=_DOWNLOAD
    ),
    Endpoint(
        "POST",
        "/definitions",
        load,
        "Load definitions",
        tag="administrator",
        body=_BODY,
        status=204,
        fails=(503,),
    ),
    Endpoint(
        "POST",
        "/qlog/definitions/check",
        check,
        "What would be left out",
        tag="administrator",
        body=_BODY,
        fails=(503,),
    ),
    Endpoint(
        "GET",
        "/definitions/{vhost}",
        export_vhost,
        "The definitions of a vhost",
        tag="administrator",
        query=_DOWNLOAD,
    ),
    Endpoint(
        "POST",
        "/definitions/{vhost}",
        load_vhost,
        "Load definitions into a vhost",
        tag="administrator",
        body={name: _ARRAY for name in SECTIONS},
        status=204,
        fails=(503,),
    ),
]
