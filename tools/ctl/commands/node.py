"""The broker as a process: is it there, how is it, start and stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from qlog.tools.ctl.api import Unreachable
from qlog.tools.ctl.command import (
    TIMEOUT,
    BadUsage,
    Call,
    Command,
    Document,
    Failure,
    Message,
    Option,
    Options,
    Rows,
    Status,
    check_positive,
)
from qlog.tools.ctl.commands.status import cluster_text, status_document, status_text

POLL_S = 0.2
AWAIT_S = 300.0


# -- is it there -------------------------------------------------------------------------------


def ping(call: Call) -> Message:
    """Whether the broker answers."""
    call.api.node()
    return Message("Ping succeeded")


def await_startup(call: Call) -> None:
    """Wait until the broker accepts clients."""
    _await(call, call.options.get("timeout") or AWAIT_S)


def _await(call: Call, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            if call.get("qlog", "status")["running"]:
                return
            missing: Exception | None = None
        except Unreachable as error:
            missing = error
        if time.monotonic() >= until_s:
            if missing is not None:
                raise missing
            raise Failure("the application is stopped; start_app starts it", Status.UNAVAILABLE)
        time.sleep(POLL_S)


def await_online_nodes(call: Call) -> None:
    """Wait for so many nodes: there is one."""
    if int(call.args[0]) > 1:
        raise Failure(f"there is one node, and not {call.args[0]}", Status.UNAVAILABLE)
    _await(call, call.options.get("timeout") or AWAIT_S)


def _await_banner(call: Call) -> str:
    timeout = call.options.get("timeout") or int(AWAIT_S)
    return (
        f"Will wait for at least {call.args[0]} nodes to join the cluster of {call.node}. "
        f"Timeout: {timeout} seconds."
    )


def _ping_banner(call: Call) -> str:
    timeout_ms = int((call.options.get("timeout") or 60) * 1000)
    return (
        f"Will ping {call.node}. This only checks if the OS process is running and registered "
        f"with epmd. Timeout: {timeout_ms} ms."
    )


# -- how it is -----------------------------------------------------------------------------------


def status(call: Call) -> Document:
    """Versions, memory, disk, counts, listeners."""
    facts = call.get("qlog", "status")
    return Document(status_document(facts), status_text(facts, call.options.get("unit", "gb")))


def cluster_status(call: Call) -> Document:
    """The one node, as a cluster."""
    facts = call.get("qlog", "status")
    flags = call.get("feature-flags")
    document, text = cluster_text(facts, flags)
    return Document(document, text)


def environment(call: Call) -> Document:
    """All settings, without passwords."""
    settings = call.get("qlog", "environment")
    lines = ",\n".join(f"     {{{name},{_term(value)}}}" for name, value in settings.items())
    return Document({"qlog": settings}, f"[{{qlog,\n    [{lines.strip()}]}}]")


def _term(value: Any) -> str:
    from qlog.tools.ctl.values import as_term

    return as_term(value)


def report(call: Call) -> Message:
    """What somebody who helps wants to know: status, settings, and what there is."""
    return Message("\n".join(_report(call)))


def _report(call: Call) -> Iterator[str]:
    from qlog.tools.ctl.formats import lines
    from qlog.tools.ctl.table import commands_of

    commands = commands_of("ctl")
    once = ("status", "cluster_status", "environment", "list_connections", "list_channels")
    for name in once:
        yield f"\n{name}\n"
        yield from lines(commands[name].run(_part(call, {})), call, "table")
    for vhost in call.get("vhosts"):
        for name in ("list_queues", "list_exchanges", "list_bindings", "list_policies"):
            yield f"\n{name} -p {vhost['name']}\n"
            part = _part(call, {"vhost": vhost["name"]})
            yield from lines(commands[name].run(part), call, "table")


def _part(call: Call, options: Mapping[str, Any]) -> Call:
    return Call([], options, call.api, call.tool)


def _check_report(args: list[str], options: Options) -> None:
    if options.get("formatter"):
        raise BadUsage('"Only report formatter is supported"')


def list_auth_attempts(call: Call) -> Rows:
    """Logins by protocol."""
    columns = ("protocol", "auth_attempts", "auth_attempts_failed", "auth_attempts_succeeded")
    return Rows(columns, call.get("auth", "attempts", call.node))


# -- start and stop ----------------------------------------------------------------------------


def _post(*parts: str) -> Any:
    def run(call: Call) -> None:
        call.ask("POST", "qlog", *parts)

    return run


def stop(call: Call) -> None:
    """End the broker, and wait until it has gone."""
    try:
        call.ask("POST", "qlog", "stop")
    except Unreachable:
        if call.options.get("idempotent"):
            return
        raise
    until_s = time.monotonic() + (call.options.get("timeout") or AWAIT_S)
    while time.monotonic() < until_s:
        try:
            call.api.node()
        except Unreachable:
            return
        time.sleep(POLL_S)
    raise Failure("the broker has not stopped", Status.UNAVAILABLE)


def _stopping(what: str) -> Any:
    def banner(call: Call) -> str:
        try:
            node = call.node
        except Unreachable:  # it may have ended already
            node = call.options.get("node") or "qlog"
        return f"{what} {node} ..."

    return banner


_N = "Nodes"
_M = "Monitoring, observability and health checks"
_BOTH = ("ctl", "diagnostics")

COMMANDS = (
    Command(
        "await_startup",
        _N,
        "Waits until the broker accepts clients",
        await_startup,
        examples=("await_startup -t 30",),
    ),
    Command(
        "wait",
        _N,
        "Waits until the broker accepts clients; the file is not looked at",
        await_startup,
        usage=f"[<pidfile>] [--pid|-P <pid>] {TIMEOUT}",
        args=(0, 1),
        options=(Option("pid", int, ("-P",)),),
        tools=_BOTH,
    ),
    Command(
        "await_online_nodes",
        "Cluster",
        "Waits for a number of nodes, of which there is one",
        await_online_nodes,
        usage=f"<count> {TIMEOUT}",
        args=(1, 1),
        check=check_positive,
        banner=_await_banner,
    ),
    Command(
        "ping",
        _M,
        "Says whether the broker answers",
        ping,
        usage=TIMEOUT,
        banner=_ping_banner,
        tools=_BOTH,
        examples=("ping", "-q ping"),
    ),
    Command(
        "status",
        _M,
        "Shows versions, memory, disk, counts and listeners",
        status,
        usage=f"[--unit <unit>] {TIMEOUT}",
        banner="Status of node {node} ...",
        options=(Option("unit", about="bytes, mb, mib, gb or gib"),),
        tools=_BOTH,
        examples=("status", "status --formatter json"),
    ),
    Command(
        "cluster_status",
        "Cluster",
        "Shows the node as a cluster of one",
        cluster_status,
        usage=TIMEOUT,
        banner="Cluster status of node {node} ...",
        tools=_BOTH,
        examples=("cluster_status --formatter json",),
    ),
    Command(
        "environment",
        "Configuration and Environment",
        "Shows all settings, without passwords",
        environment,
        banner="Application environment of node {node} ...",
        tools=_BOTH,
    ),
    Command(
        "report",
        _M,
        "Shows status, settings and what there is, for somebody who helps",
        report,
        banner="Reporting server status of node {node} ...",
        check=_check_report,
        tools=_BOTH,
        examples=("report > report.txt",),
    ),
    Command(
        "start_app",
        _N,
        "Accepts clients again after stop_app",
        _post("app", "start"),
        banner="Starting node {node} ...",
    ),
    Command(
        "stop_app",
        _N,
        "Closes listeners and connections; the process and qlog ctl stay",
        _post("app", "stop"),
        banner="Stopping rabbit application on node {node} ...",
    ),
    Command(
        "stop",
        _N,
        "Ends the broker",
        stop,
        usage="[--idempotent] [<pidfile>]",
        args=(0, 1),
        banner=_stopping("Stopping and halting node"),
        options=(Option("idempotent", bool, about="it may have ended already"),),
    ),
    Command(
        "shutdown",
        _N,
        "Ends the broker",
        stop,
        usage="[--wait] [--timeout <timeout>]",
        banner=_stopping("Shutting down RabbitMQ node"),
        options=(Option("wait", bool, about="until it has ended; always so"),),
    ),
    Command(
        "reset",
        _N,
        "Deletes all messages, queues and definitions; after stop_app only",
        _post("reset"),
        banner="Resetting node {node} ...",
    ),
    Command(
        "force_reset",
        "Cluster",
        "The same",
        _post("reset"),
        banner="Forcefully resetting node {node} ...",
    ),
    Command(
        "suspend_listeners",
        "Operations",
        "Accepts no new clients; those that are there stay",
        _post("listeners", "suspend"),
        banner="Will suspend client listeners on node {node}. "
        "No new client connections will be accepted",
    ),
    Command(
        "resume_listeners",
        "Operations",
        "Accepts new clients again",
        _post("listeners", "resume"),
        banner="Will resume client listeners on node {node}. "
        "The node will now accept client connections",
    ),
    Command(
        "list_node_auth_attempt_stats",
        _M,
        "Lists how many logins succeeded and failed",
        list_auth_attempts,
        usage="[--by-source]",
        banner='Listing authentication\n attempts for node "{node}" ...',
        options=(Option("by_source", bool),),
        tools=_BOTH,
    ),
    Command(
        "force_gc",
        "Operations",
        "Collects garbage",
        _post("collect-garbage"),
        usage=TIMEOUT,
        banner="Will ask all processes on node {node} to schedule a full sweep GC",
    ),
)
