"""The endpoints below /api/qlog: what RabbitMQ's API lacks and `qlog ctl` needs.

What concerns the process (listeners, thresholds, alarms, the end) is for its owner alone, who comes
by the socket in the data directory.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from qlog import __version__
from qlog.server.broker.operations import Refused
from qlog.server.http.access import THE_OWNER
from qlog.server.http.answers import NO_CONTENT, Answer
from qlog.server.http.ask import Ask, required
from qlog.server.http.context import Node
from qlog.server.http.endpoints.overview import object_totals
from qlog.server.http.endpoints.policies import policy_facts
from qlog.server.http.refusals import bad_request, not_authorised, not_found, refusal
from qlog.server.http.table import Endpoint

OWNER_ONLY = "only the owner of the data directory may do that, by its socket"
# What RabbitMQ has in plugins, and is here.
PLUGINS = (
    "rabbitmq_auth_mechanism_ssl",
    "rabbitmq_consistent_hash_exchange",
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_prometheus",
    "rabbitmq_random_exchange",
    "rabbitmq_recent_history_exchange",
)
# A threshold is at most so many times the memory.
FRACTION_MAX = 1000
_LEVELS = ("debug", "info", "warning", "error", "critical", "none")


def node_of(ask: Ask) -> Node:
    """The process, for its owner. Raises 401, and 404 where it is somebody else's."""
    if ask.identity is not THE_OWNER:
        raise not_authorised(OWNER_ONLY)
    node: Node | None = ask.context.node
    if node is None:
        raise not_found()
    return node


async def status(ask: Ask) -> dict[str, Any]:
    """What `status` and the checks look at."""
    about = ask.operations.about()
    totals = await object_totals(ask)
    context = ask.context
    node = context.node
    return {
        "node": about.node,
        "cluster_name": about.cluster_name,
        "product": about.product,
        "version": about.version,
        "qlog_version": __version__,
        "running": node is None or node.running,
        "listening": node is None or node.listening,
        "alarms": [] if node is None else node.alarms(),
        "pid": os.getpid(),
        "os": sys.platform.capitalize(),
        "uptime_s": int(context.uptime_s()),
        "processors": os.cpu_count() or 1,
        "data_dir": context.data_dir,
        "log_file": context.log_file,
        "plugins": list(PLUGINS),
        "connections": totals["connections"],
        "queues": totals["queues"],
        "vhosts": sum(1 for _ in ask.operations.vhosts()),
        "listeners": [
            {"protocol": each.protocol, "host": each.host, "port": each.port}
            for each in context.listeners()
        ],
        **context.resources(),
    }


async def authenticate(ask: Ask) -> Answer:
    """Whether a password is right: 204, or 404."""
    (password,) = required(await ask.document(), "password")
    if not isinstance(password, str):
        raise bad_request("password is not a text")
    login = ask.operations.authenticate(
        ask.path["user"], password.encode(), address=ask.identity.name, loopback=True
    )
    try:
        await ask.settled(login)
    except Refused:
        raise not_found() from None
    return NO_CONTENT


# -- the process -------------------------------------------------------------------------------


async def environment(ask: Ask) -> Any:
    """All settings, without secrets."""
    return node_of(ask).environment()


async def stop_app(ask: Ask) -> Answer:
    """Close the listeners and all connections."""
    await node_of(ask).stop_app()
    return NO_CONTENT


async def start_app(ask: Ask) -> Answer:
    """Accept clients again."""
    return _opened(node_of(ask).start_app)


async def suspend(ask: Ask) -> Answer:
    """Close the listeners."""
    node_of(ask).suspend()
    return NO_CONTENT


async def resume(ask: Ask) -> Answer:
    """Open them again."""
    return _opened(node_of(ask).resume)


def _opened(opening: Any) -> Answer:
    try:
        opening()
    except OSError as error:  # somebody has taken the address meanwhile
        raise refusal(503, "cannot_listen", str(error)) from None
    return NO_CONTENT


async def stop(ask: Ask) -> Answer:
    """End the process."""
    node_of(ask).stop()
    return NO_CONTENT


async def set_watermark(ask: Ask) -> Answer:
    """The threshold of memory or disk: `bytes`, or `fraction` of the memory."""
    node = node_of(ask)
    document = await ask.document()
    setters = {"memory": node.set_memory_limit, "disk": node.set_disk_limit}
    if ask.path["resource"] not in setters:
        raise not_found()
    octets, fraction = document.get("bytes"), document.get("fraction")
    if isinstance(octets, int) and octets >= 0:
        setters[ask.path["resource"]](octets=octets)
    elif isinstance(fraction, int | float) and 0 <= fraction <= FRACTION_MAX:
        setters[ask.path["resource"]](fraction=fraction)
    else:
        raise bad_request("neither bytes nor a fraction")
    return NO_CONTENT


async def set_alarm(ask: Ask) -> Answer:
    """Say that a resource is short (`on`), or leave it to what is measured."""
    node = node_of(ask)
    (on,) = required(await ask.document(), "on")
    try:
        node.set_alarm(ask.path["resource"], bool(on))
    except KeyError:
        raise not_found() from None
    return NO_CONTENT


async def set_log_level(ask: Ask) -> Answer:
    """Log what is at least so important."""
    node = node_of(ask)
    (level,) = required(await ask.document(), "level")
    if level not in _LEVELS:
        raise bad_request(f"level is not one of {', '.join(_LEVELS)}")
    node.set_log_level(level)
    return NO_CONTENT


async def set_passing(ask: Ask) -> Answer:
    """A setting by RabbitMQ's name, until the next start."""
    node = node_of(ask)
    (value,) = required(await ask.document(), "value")
    try:
        node.set_passing(ask.path["name"], value)
    except KeyError:
        raise not_found() from None
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from None
    return NO_CONTENT


async def reset(ask: Ask) -> Answer:
    """Delete everything, and begin as a first start does."""
    node = node_of(ask)
    if node.running:
        raise bad_request("the application is running: stop_app has to come first")
    await node.reset()
    return NO_CONTENT


async def policies_that_match(ask: Ask) -> list[dict[str, Any]]:
    """The policies that fit an object, the one that applies first."""
    vhost, thing = ask.vhost(), ask.path["thing"]
    if thing not in ("queue", "exchange"):
        raise not_found()
    found = ask.operations.policies_that_match(vhost, thing, ask.path["name"])
    return [policy_facts(vhost, policy) for policy in found]


async def collect_garbage(ask: Ask) -> Answer:
    """Collect garbage now."""
    node_of(ask).collect_garbage()
    return NO_CONTENT


def _do(path: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint("POST", f"/qlog/{path}", handler, summary, "administrator", status=204)


ENDPOINTS = [
    Endpoint("GET", "/qlog/status", status, "Resources, counts, listeners", "monitoring"),
    Endpoint(
        "POST",
        "/qlog/users/{user}/authenticate",
        authenticate,
        "Whether a password is right",
        "administrator",
        body={"password": {"type": "string"}},
        required=("password",),
        status=204,
    ),
    Endpoint("GET", "/qlog/environment", environment, "All settings", "administrator"),
    Endpoint(
        "PUT",
        "/qlog/environment/{name}",
        set_passing,
        "A setting, until the next start",
        "administrator",
        body={"value": {}},
        required=("value",),
        status=204,
    ),
    Endpoint(
        "GET",
        "/qlog/policies/{vhost}/{thing}/{name}",
        policies_that_match,
        "The policies that fit an object",
    ),
    _do("reset", reset, "Delete everything"),
    _do("app/stop", stop_app, "Close the listeners and all connections"),
    _do("app/start", start_app, "Accept clients again"),
    _do("listeners/suspend", suspend, "Close the listeners"),
    _do("listeners/resume", resume, "Open them again"),
    _do("stop", stop, "End the process"),
    _do("collect-garbage", collect_garbage, "Collect garbage"),
    Endpoint(
        "PUT",
        "/qlog/watermarks/{resource}",
        set_watermark,
        "The threshold of memory or disk",
        "administrator",
        body={"bytes": {"type": "integer"}, "fraction": {"type": "number"}},
        status=204,
    ),
    Endpoint(
        "PUT",
        "/qlog/alarms/{resource}",
        set_alarm,
        "Say that memory, disk or descriptors are short",
        "administrator",
        body={"on": {"type": "boolean"}},
        required=("on",),
        status=204,
    ),
    Endpoint(
        "PUT",
        "/qlog/log-level",
        set_log_level,
        "Log more, or less",
        "administrator",
        body={"level": {"enum": list(_LEVELS)}},
        required=("level",),
        status=204,
    ),
]
