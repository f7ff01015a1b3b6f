"""The broker as a process: is it there, how is it, start and stop, thresholds, the log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from qlog.tools.ctl.api import Unreachable
from qlog.tools.ctl.command import (
    BadUsage,
    Call,
    Command,
    Document,
    Failure,
    Message,
    Option,
    Options,
    Result,
    Rows,
    Status,
    bad_argument,
    wanted_columns,
)
from qlog.tools.ctl.commands.status import cluster_text, status_document, status_text

LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "none")
POLL_S = 0.2
AWAIT_S = 300.0
_UNITS = {
    "": 1,
    **{name: 10**power for power, names in ((3, "kK"), (6, "mM"), (9, "gG")) for name in names},
    **{f"{name}b": 10**power for power, name in ((3, "k"), (6, "m"), (9, "g"), (12, "t"))},
    **{f"{name}B": 10**power for power, name in ((3, "k"), (6, "m"), (9, "g"), (12, "t"))},
    **{f"{name}B": 10**power for power, name in ((3, "K"), (6, "M"), (9, "G"), (12, "T"))},
    **{f"{name}iB": 2**power for power, name in ((10, "K"), (20, "M"), (30, "G"), (40, "T"))},
    **{f"{name}ib": 2**power for power, name in ((10, "k"), (20, "m"), (30, "g"), (40, "t"))},
}


def octets(text: str) -> int:
    """A size such as `50MB`. Raises BadUsage."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]{0,3})", text)
    if match is None or match[2] not in _UNITS:
        raise bad_argument()
    factor: int = _UNITS[match[2]]
    return int(match[1]) * factor


def fraction(text: str) -> float:
    """A number that may have a point. Raises BadUsage."""
    try:
        return float(text)
    except ValueError:
        raise bad_argument() from None


# -- is it there -------------------------------------------------------------------------------


def ping(call: Call) -> Message:
    """Whether the broker answers."""
    call.api.node()
    return Message("Ping succeeded")


def version(call: Call) -> Document:
    """The version of RabbitMQ that the broker stands for; that of qlog without a broker."""
    from qlog import __version__

    return Document({"version": __version__}, __version__)


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


def _check_count(args: list[str], options: Options) -> None:
    if not args[0].isdigit() or int(args[0]) < 1:
        raise bad_argument("Argument must be a positive integer")


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


def list_feature_flags(call: Call) -> Rows:
    """What old versions lacked: all of it is there."""
    return Rows(wanted_columns(call, ("name", "state")), call.get("feature-flags"))


def enable_feature_flag(call: Call) -> None:
    """All are on."""
    name = call.args[0]
    if name != "all" and all(flag["name"] != name for flag in call.get("feature-flags")):
        raise Failure(f"This feature flag is not supported by node {call.node}", Status.USAGE)


def _flag_banner(call: Call) -> str:
    name = call.args[0]
    what = "all feature flags" if name == "all" else f'feature flag "{name}"'
    return f"Enabling {what} ..."


def list_deprecated_features(call: Call) -> Rows:
    """What will go."""
    path = ("deprecated-features", "used") if call.options.get("used") else ("deprecated-features",)
    return Rows(wanted_columns(call, ("name", "deprecation_phase")), call.get(*path))


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


# -- thresholds ----------------------------------------------------------------------------------


def _check_memory(args: list[str], options: Options) -> None:
    if args[0] == "absolute":
        if len(args) < 2:
            raise BadUsage("not enough arguments.")
        octets(args[1])
    elif len(args) > 1:
        raise BadUsage("too many arguments.")
    elif not 0 <= fraction(args[0]) <= 1:
        raise bad_argument("The threshold should be a fraction between 0.0 and 1.0")


def set_memory_watermark(call: Call) -> None:
    """Block publishers above this use of memory."""
    absolute = call.args[0] == "absolute"
    body = {"bytes": octets(call.args[1])} if absolute else {"fraction": fraction(call.args[0])}
    call.ask("PUT", "qlog", "watermarks", "memory", body=body)


def _memory_banner(call: Call) -> str:
    threshold = f"{call.args[1]} bytes" if call.args[0] == "absolute" else call.args[0]
    return f"Setting memory threshold on {call.node} to {threshold} ..."


def _check_disk(args: list[str], options: Options) -> None:
    if args[0] == "mem_relative":
        if len(args) < 2:
            raise BadUsage("not enough arguments.")
        fraction(args[1])
    elif len(args) > 1:
        raise BadUsage("too many arguments.")
    else:
        octets(args[0])


def set_disk_limit(call: Call) -> None:
    """Block publishers when less of the disk is free."""
    relative = call.args[0] == "mem_relative"
    body = {"fraction": fraction(call.args[1])} if relative else {"bytes": octets(call.args[0])}
    call.ask("PUT", "qlog", "watermarks", "disk", body=body)


def _disk_banner(call: Call) -> str:
    if call.args[0] == "mem_relative":
        return f"Setting disk free limit on {call.node} to {call.args[1]} times the total RAM ..."
    return f"Setting disk free limit on {call.node} to {call.args[0]} bytes ..."


def set_log_level(call: Call) -> None:
    """Log more, or less; until the next start."""
    call.ask("PUT", "qlog", "log-level", body={"level": call.args[0]})


def _check_level(args: list[str], options: Options) -> None:
    if args[0] not in LOG_LEVELS:
        raise Failure(
            f"level {args[0]} is not supported. Try one of {', '.join(LOG_LEVELS)}",
            Status.UNAVAILABLE,
        )


def set_cluster_name(call: Call) -> None:
    """The name that clients are told."""
    call.ask("PUT", "cluster-name", body={"name": call.args[0]})


# -- words that are recognised ---------------------------------------------------------------------


def evaluate(call: Call) -> Result:
    """A few expressions of Erlang, which test suites of clients use."""
    from qlog.tools.ctl.erlang import evaluated

    return Message(evaluated(call))


def _nothing(text: str) -> Any:
    def run(call: Call) -> Message | None:
        call.api.node()
        return Message(text) if text else None

    return run


def rotate_logs(call: Call) -> None:
    """Logs go to stderr."""
    raise Failure("This command does not rotate logs anymore [deprecated]", Status.UNAVAILABLE)


def autocomplete(call: Call) -> Message:
    """The commands that begin so."""
    from qlog.tools.ctl.table import commands_of

    return Message(
        "\n".join(sorted(n for n in commands_of(call.tool) if n.startswith(call.args[0])))
    )


def completion(call: Call) -> Message:
    """A script that completes commands, options and columns."""
    from qlog.tools.ctl.completion import script
    from qlog.tools.ctl.table import commands_of

    return Message(script(call.args[0], commands_of("ctl")))


def _check_shell(args: list[str], options: Options) -> None:
    from qlog.tools.ctl.completion import SHELLS

    if args[0] not in SHELLS:
        raise bad_argument(f"the shell is one of {', '.join(SHELLS)}")


def list_hashes(call: Call) -> Message:
    """The hashes that passwords are imported with."""
    return Message("[sha256,sha512,md5,argon2id]")


def help_(call: Call) -> None:
    """Help is given before anything is asked (main.py)."""


_N = "Nodes"
_M = "Monitoring, observability and health checks"
_E = "Configuration and Environment"
_ALL = ("ctl", "diagnostics", "queues", "plugins")
_BOTH = ("ctl", "diagnostics")
_TIMEOUT = "[--timeout <timeout>]"

COMMANDS = (
    Command(
        "autocomplete",
        "Help",
        "Lists the commands that begin with a text",
        autocomplete,
        usage=f"[prefix] {_TIMEOUT}",
        args=(1, 1),
        tools=_ALL,
        examples=("autocomplete list_v",),
    ),
    Command(
        "help",
        "Help",
        "Says how a command is used",
        help_,
        usage="(<command> | [--list-commands])",
        args=(0, 1),
        tools=_ALL,
        examples=("help list_queues",),
    ),
    Command(
        "completion",
        "Help",
        "Prints a script that completes commands, options and columns in a shell",
        completion,
        usage="<bash | zsh>",
        args=(1, 1),
        check=_check_shell,
        examples=("completion bash > /etc/bash_completion.d/qlog",),
    ),
    Command("version", "Help", "Shows the version", version, tools=_ALL),
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
        usage=f"[<pidfile>] [--pid|-P <pid>] {_TIMEOUT}",
        args=(0, 1),
        options=(Option("pid", int, ("-P",)),),
        tools=_BOTH,
    ),
    Command(
        "await_online_nodes",
        "Cluster",
        "Waits for a number of nodes, of which there is one",
        await_online_nodes,
        usage=f"<count> {_TIMEOUT}",
        args=(1, 1),
        check=_check_count,
        banner=_await_banner,
    ),
    Command(
        "ping",
        _M,
        "Says whether the broker answers",
        ping,
        usage=_TIMEOUT,
        banner=_ping_banner,
        tools=_BOTH,
        examples=("ping", "-q ping"),
    ),
    Command(
        "status",
        _M,
        "Shows versions, memory, disk, counts and listeners",
        status,
        usage=f"[--unit <unit>] {_TIMEOUT}",
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
        usage=_TIMEOUT,
        banner="Cluster status of node {node} ...",
        tools=_BOTH,
        examples=("cluster_status --formatter json",),
    ),
    Command(
        "environment",
        _E,
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
        "set_vm_memory_high_watermark",
        _E,
        "Blocks publishers above this use of memory; until the next start",
        set_memory_watermark,
        usage="<fraction> | absolute <value>",
        args=(1, 2),
        banner=_memory_banner,
        check=_check_memory,
        examples=("set_vm_memory_high_watermark 0.5", "set_vm_memory_high_watermark absolute 2GB"),
    ),
    Command(
        "set_disk_free_limit",
        _E,
        "Blocks publishers when less of the disk is free; until the next start",
        set_disk_limit,
        usage="<disk_limit> | mem_relative <fraction>",
        args=(1, 2),
        banner=_disk_banner,
        check=_check_disk,
        examples=("set_disk_free_limit 5GB", "set_disk_free_limit mem_relative 1.5"),
    ),
    Command(
        "set_log_level",
        _E,
        "Logs more or less, until the next start",
        set_log_level,
        usage="<log_level>",
        args=(1, 1),
        banner='Setting log level to "{0}" ...',
        check=_check_level,
        examples=("set_log_level debug",),
    ),
    Command(
        "set_cluster_name",
        _E,
        "Sets the name that clients are told",
        set_cluster_name,
        usage="<name>",
        args=(1, 1),
        banner="Setting cluster name to {0} ...",
    ),
    Command(
        "list_feature_flags",
        "Feature flags",
        "Lists feature flags",
        list_feature_flags,
        usage=f"[<column> ...] {_TIMEOUT}",
        args=(0, None),
        banner="Listing feature flags ...",
        columns=("desc", "doc_url", "name", "provided_by", "stability", "state"),
        tools=_BOTH,
    ),
    Command(
        "enable_feature_flag",
        "Feature flags",
        "Turns a feature flag on: all are on",
        enable_feature_flag,
        usage="[--opt-in] <all | feature_flag>",
        args=(1, 1),
        banner=_flag_banner,
        options=(Option("opt_in", bool), Option("experimental", bool)),
    ),
    Command(
        "list_deprecated_features",
        "Feature flags",
        "Lists features that will go",
        list_deprecated_features,
        usage="[--used] [<column> ...]",
        args=(0, None),
        banner=lambda call: (
            f"Listing deprecated features {'in use ' if call.options.get('used') else ''}..."
        ),
        options=(Option("used", bool, about="those that are in use"),),
        columns=("deprecation_phase", "desc", "doc_url", "name", "provided_by"),
        tools=_BOTH,
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
        "list_hashes",
        _M,
        "Lists hashes that passwords are imported with",
        list_hashes,
        banner="Listing supported hash algorithms ...",
        tools=_BOTH,
    ),
    Command(
        "force_gc",
        "Operations",
        "Collects garbage",
        _post("collect-garbage"),
        usage=_TIMEOUT,
        banner="Will ask all processes on node {node} to schedule a full sweep GC",
    ),
    Command(
        "reconcile_vhosts",
        "Virtual hosts",
        "Does nothing: a virtual host is where its broker is",
        _nothing(""),
        usage=_TIMEOUT,
        banner="Will try to initiate virtual host reconciliation on all reachable cluster nodes...",
    ),
    Command(
        "eval",
        "Operations",
        "Obeys a few expressions of Erlang that test suites use",
        evaluate,
        usage="<expression>",
        args=(1, 1),
        examples=("eval 'rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []}).'",),
    ),
    Command("rotate_logs", _N, "Does nothing: logs go to stderr", rotate_logs),
    Command(
        "node_health_check",
        "Deprecated",
        "Does nothing; see check_running and its kin",
        _nothing(
            "This command is DEPRECATED and is a no-op. It will be removed in a future version. "
            "\nUse one of the options covered in "
            "https://www.rabbitmq.com/monitoring.html#health-checks instead."
        ),
        usage=_TIMEOUT,
        tools=_BOTH,
    ),
)
