"""Vhosts, and what is set about them."""

from __future__ import annotations

from functools import partial
from typing import Any

from qlog.server.broker.operations import VHost, VHostProtected
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, put
from qlog.server.http.ask import Ask
from qlog.server.http.fields import flag, text, texts
from qlog.server.http.refusals import not_found, refusal
from qlog.server.http.spans import spans
from qlog.server.http.table import HISTORY, Endpoint


async def list_vhosts(ask: Ask) -> Listing[VHost]:
    """All vhosts."""
    return Listing(
        ask.vhosts(),
        partial(ask.operations.vhost_facts, spans=spans(ask)),
        name=lambda vhost: vhost.name,
        order=lambda vhost: vhost.name,
    )


async def show_vhost(ask: Ask) -> dict[str, Any]:
    """One vhost."""
    return ask.operations.vhost_facts(ask.vhost(), spans=spans(ask))


async def set_vhost(ask: Ask) -> Answer:
    """Make a vhost, or change what is set about one; who makes one may use it."""
    name = ask.path["vhost"]
    document = await ask.document()
    existed = any(vhost.name == name for vhost in ask.operations.vhosts())
    default_type = document.get("default_queue_type")
    outcome = ask.operations.set_vhost(
        name,
        description=text(document, "description"),
        tags=texts(document, "tags"),
        default_queue_type=None if default_type in (None, "", "undefined") else default_type,
    )
    vhost = await ask.settled(outcome)
    if not existed and ask.identity.actor.user is not None:
        everything = (".*", ".*", ".*")
        await ask.settled(ask.operations.set_permissions(name, ask.identity.name, *everything))
    if "tracing" in document:
        ask.operations.set_tracing(vhost, flag(document, "tracing"))
    return put(existed)


async def delete_vhost(ask: Ask) -> Answer:
    """Delete a vhost with all that is in it."""
    try:
        outcome = ask.operations.delete_vhost(ask.vhost().name)
    except VHostProtected as error:
        raise refusal(412, "precondition_failed", str(error)) from None
    await ask.settled(outcome)
    return NO_CONTENT


async def protect_vhost(ask: Ask) -> Answer:
    """Protect a vhost from deletion."""
    await ask.settled(ask.operations.protect_vhost(ask.vhost(), True))
    return NO_CONTENT


async def unprotect_vhost(ask: Ask) -> Answer:
    """Let a vhost be deleted again."""
    await ask.settled(ask.operations.protect_vhost(ask.vhost(), False))
    return NO_CONTENT


async def start_vhost(ask: Ask) -> Answer:
    """RabbitMQ starts a vhost that has failed; here a vhost is there or not."""
    ask.vhost()
    if ask.path["node"] != ask.operations.about().node:
        raise not_found()
    return NO_CONTENT


_SET = {
    "description": {"type": "string"},
    "tags": {"type": "string"},
    "default_queue_type": {"type": "string", "enum": ["classic", "quorum", "stream"]},
    "tracing": {"type": "boolean"},
}

ENDPOINTS = [
    Endpoint("GET", "/vhosts", list_vhosts, "All vhosts", query=HISTORY),
    Endpoint("GET", "/vhosts/{vhost}", show_vhost, "One vhost", query=HISTORY),
    Endpoint(
        "PUT",
        "/vhosts/{vhost}",
        set_vhost,
        "Make or change a vhost",
        tag="administrator",
        body=_SET,
        status=201,
    ),
    Endpoint(
        "DELETE",
        "/vhosts/{vhost}",
        delete_vhost,
        "Delete a vhost",
        tag="administrator",
        status=204,
    ),
    Endpoint(
        "POST",
        "/vhosts/{vhost}/deletion/protection",
        protect_vhost,
        "Protect a vhost from deletion",
        tag="administrator",
        status=204,
    ),
    Endpoint(
        "DELETE",
        "/vhosts/{vhost}/deletion/protection",
        unprotect_vhost,
        "Let it be deleted again",
        tag="administrator",
        status=204,
    ),
    Endpoint(
        "POST",
        "/vhosts/{vhost}/start/{node}",
        start_vhost,
        "Nothing: a vhost is there or not",
        tag="administrator",
        status=204,
    ),
]
