"""Permissions: who may do what in which vhost, and with which topics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qlog.tools.ctl.command import (
    Call,
    Command,
    Failure,
    Rows,
    Status,
    no_such_user,
    no_vhost,
)

_RIGHTS = ("configure", "write", "read")
_TOPIC_RIGHTS = ("exchange", "write", "read")
_BAD_PATTERN = re.compile(
    r'the pattern <<"(.*)">> should be regular expression but is invalid: \{"(.*)",(\d+)\}'
)


def _needs_both(call: Call, name: str) -> None:
    """Raises Failure without the vhost, and without the user."""
    if not call.exists("vhosts", call.vhost):
        raise Failure(f"Virtual host {call.vhost} does not exist", Status.UNAVAILABLE)
    _needs_user(call, name)


def _needs_user(call: Call, name: str) -> None:
    missing = Failure(f"User {name} does not exist", Status.NO_USER)
    call.get("users", name, missing=missing)


def set_permissions(call: Call) -> None:
    """What a user may configure, write and read."""
    name, *patterns = call.args
    _needs_both(call, name)
    body = dict(zip(_RIGHTS, patterns, strict=True))
    _put(call, ("permissions", call.vhost, name), body, charlist="~c")


def set_permissions_globally(call: Call) -> None:
    """The same in all vhosts."""
    name, *patterns = call.args
    _needs_user(call, name)
    body = dict(zip(_RIGHTS, patterns, strict=True))
    for vhost in call.get("vhosts"):
        _put(call, ("permissions", vhost["name"], name), body, charlist="~c")


def _put(call: Call, path: tuple[str, ...], body: Mapping[str, str], charlist: str = "") -> None:
    """Set patterns; one that is none is said as RabbitMQ says it."""
    try:
        call.ask("PUT", *path, body=body)
    except Failure as failure:
        bad = _BAD_PATTERN.fullmatch(failure.text)
        if bad is None:
            raise
        why = f'{{~c"{bad[2]}", {bad[3]}}}'
        text = f'{{:invalid_regexp, {charlist}"{bad[1]}", {why}}}'
        raise Failure(text, Status.UNAVAILABLE) from None


def clear_permissions(call: Call) -> None:
    """A user may do nothing in a vhost any more."""
    call.take_away("permissions", call.vhost, call.args[0])


def set_topic_permissions(call: Call) -> None:
    """Which routing keys a user may use with a topic exchange."""
    name, *values = call.args
    _needs_both(call, name)
    body = dict(zip(_TOPIC_RIGHTS, values, strict=True))
    _put(call, ("topic-permissions", call.vhost, name), body)


def clear_topic_permissions(call: Call) -> None:
    """All routing keys again, of one exchange or of all."""
    call.take_away("topic-permissions", call.vhost, *call.args)


def _clear_topic_banner(call: Call) -> str:
    name, *exchange = call.args
    on = f' on "{exchange[0]}"' if exchange else ""
    return f'Clearing topic permissions{on} for user "{name}" in vhost "{call.vhost}" ...'


def _in_vhost(path: str, columns: tuple[str, ...]) -> Any:
    def run(call: Call) -> Rows:
        found: Iterable[Mapping[str, Any]] = call.get(
            "vhosts", call.vhost, path, missing=no_vhost(call.vhost)
        )
        return Rows(("user", *columns), found)

    return run


def _of_user(path: str, columns: tuple[str, ...], *, header: bool) -> Any:
    def run(call: Call) -> Rows:
        name = call.args[0]
        found = call.get("users", name, path, missing=no_such_user(name))
        return Rows(("vhost", *columns), found, header)

    return run


_G = "Access Control"
_BOTH = ("ctl", "diagnostics")
_PATTERNS = {
    "<conf>": "a pattern for names of what may be declared and deleted",
    "<write>": "a pattern for what may be published to",
    "<read>": "a pattern for what may be consumed from; '' matches nothing",
}

COMMANDS = (
    Command(
        "set_permissions",
        _G,
        "Sets what a user may do in a virtual host",
        set_permissions,
        usage="[--vhost <vhost>] <username> <conf> <write> <read>",
        args=(4, 4),
        banner='Setting permissions for user "{0}" in vhost "{vhost}" ...',
        arguments=_PATTERNS,
        examples=("set_permissions -p / alice '.*' '.*' '.*'",),
    ),
    Command(
        "set_permissions_globally",
        _G,
        "Sets what a user may do in all virtual hosts",
        set_permissions_globally,
        usage="<username> <conf> <write> <read>",
        args=(4, 4),
        banner='Setting permissions for user "{0}" in all virtual hosts ...',
        arguments=_PATTERNS,
        examples=("set_permissions_globally alice '' '' '.*'",),
    ),
    Command(
        "clear_permissions",
        _G,
        "Takes a user's permissions in a virtual host away",
        clear_permissions,
        usage="[--vhost <vhost>] <username>",
        args=(1, 1),
        banner='Clearing permissions for user "{0}" in vhost "{vhost}" ...',
        examples=("clear_permissions -p / alice",),
    ),
    Command(
        "list_permissions",
        _G,
        "Lists the permissions in a virtual host",
        _in_vhost("permissions", _RIGHTS),
        usage="[--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]",
        banner='Listing permissions for vhost "{vhost}" ...',
        tools=_BOTH,
        examples=("list_permissions -p /",),
    ),
    Command(
        "list_user_permissions",
        _G,
        "Lists the permissions of a user",
        _of_user("permissions", _RIGHTS, header=True),
        usage="[--no-table-headers] <username> [--timeout <timeout>]",
        args=(1, 1),
        banner='Listing permissions for user "{0}" ...',
        tools=_BOTH,
        examples=("list_user_permissions alice",),
    ),
    Command(
        "set_topic_permissions",
        _G,
        "Sets which routing keys a user may use with a topic exchange",
        set_topic_permissions,
        usage="[--vhost <vhost>] <username> <exchange> <write> <read>",
        args=(4, 4),
        banner='Setting topic permissions on "{1}" for user "{0}" in vhost "{vhost}" ...',
        arguments={
            "<write>": "a pattern for routing keys of messages; {username} and {vhost} stand for"
            " those of the connection",
            "<read>": "a pattern for routing keys of bindings",
        },
        examples=("set_topic_permissions -p / alice amq.topic '^{username}\\.' '.*'",),
    ),
    Command(
        "clear_topic_permissions",
        _G,
        "Takes a user's topic permissions away, for one exchange or for all",
        clear_topic_permissions,
        usage="[--vhost <vhost>] <username> [<exchange>]",
        args=(1, 2),
        banner=_clear_topic_banner,
        examples=("clear_topic_permissions -p / alice amq.topic",),
    ),
    Command(
        "list_topic_permissions",
        _G,
        "Lists the topic permissions in a virtual host",
        _in_vhost("topic-permissions", _TOPIC_RIGHTS),
        usage="[--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]",
        banner='Listing topic permissions for vhost "{vhost}" ...',
        tools=_BOTH,
        examples=("list_topic_permissions -p /",),
    ),
    Command(
        "list_user_topic_permissions",
        _G,
        "Lists the topic permissions of a user",
        _of_user("topic-permissions", _TOPIC_RIGHTS, header=False),
        usage="[--no-table-headers] <username> [--timeout <timeout>]",
        args=(1, 1),
        banner='Listing topic permissions for user "{0}" ...',
        tools=_BOTH,
        examples=("list_user_topic_permissions alice",),
    ),
)
