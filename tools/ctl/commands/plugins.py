"""`rabbitmq-plugins`: what are plugins there is built in here, and cannot be turned off."""

from __future__ import annotations

import re

from qlog.tools.ctl.command import (
    Call,
    Command,
    Failure,
    Message,
    Option,
    Status,
)

BUILT_IN = (
    "rabbitmq_auth_mechanism_ssl",
    "rabbitmq_consistent_hash_exchange",
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_prometheus",
    "rabbitmq_random_exchange",
    "rabbitmq_recent_history_exchange",
)


def _version(call: Call) -> str:
    version: str = call.get("overview", columns="rabbitmq_version")["rabbitmq_version"]
    return version


def list_plugins(call: Call) -> Message:
    """What is built in."""
    pattern = call.args[0] if call.args else ".*"
    try:
        names = [name for name in BUILT_IN if re.search(pattern, name)]
    except re.error as error:
        raise Failure(f"no pattern: {error}", Status.DATA) from None
    if call.options.get("minimal"):
        return Message("\n".join(names))
    version = _version(call)
    width = max(map(len, names), default=0)
    head = (
        " Configured: E = explicitly enabled; e = implicitly enabled",
        f" | Status: * = running on {call.node}",
        " |/",
    )
    return Message("\n".join((*head, *(f"[E*] {name:<{width}} {version}" for name in names))))


def is_enabled(call: Call) -> Message:
    """Whether all of these are built in."""
    missing = [name for name in call.args if name not in BUILT_IN]
    one = len(call.args) == 1
    if missing:
        subject = f"Plugin {missing[0]} is" if len(missing) == 1 else f"Plugins {_and(missing)} are"
        raise Failure(
            f"{subject} not enabled on node {call.node}. "
            f"Enabled plugins and dependencies: {', '.join(BUILT_IN)}",
            Status.UNAVAILABLE,
        )
    subject = f"Plugin {call.args[0]} is" if one else f"Plugins {_and(call.args)} are"
    return Message(f"{subject} enabled on node {call.node}")


def _and(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _asking(call: Call) -> str:
    if len(call.args) == 1:
        return f"Asking node {call.node} if plugin {call.args[0]} is enabled..."
    return f"Asking node {call.node} if plugins {', '.join(call.args)} are enabled..."


def enable(call: Call) -> Message:
    """What is built in is on already; nothing else can be turned on."""
    unknown = [name for name in call.args if name not in BUILT_IN]
    if unknown:
        raise Failure(
            f"{{:plugins_not_found, [{', '.join(f':{name}' for name in unknown)}]}}",
            Status.UNAVAILABLE,
        )
    return Message("Plugin configuration unchanged.")


def disable(call: Call) -> None:
    """Nothing can be turned off."""
    raise Failure(
        "what RabbitMQ has in plugins is built into qlog; settings turn listeners off",
        Status.UNAVAILABLE,
    )


_G = "Plugin Management"
_P = ("plugins",)
_WHERE = (
    Option("all", bool),
    Option("minimal", bool, ("-m",), "names alone"),
    Option("verbose", bool, ("-v",)),
    Option("enabled", bool, ("-E",)),
    Option("implicitly_enabled", bool, ("-e",)),
)

COMMANDS = (
    Command(
        "list",
        _G,
        "Lists what is built in, by the names of RabbitMQ's plugins",
        list_plugins,
        usage="[pattern] [--verbose] [--minimal] [--enabled] [--implicitly-enabled]",
        args=(0, 1),
        banner=lambda call: (
            f'Listing plugins with pattern "{call.args[0] if call.args else ".*"}" ...'
        ),
        options=_WHERE,
        tools=_P,
        examples=("list -m", "list prometheus"),
    ),
    Command(
        "is_enabled",
        _G,
        "Exits with 69 unless these are built in",
        is_enabled,
        usage="<plugin1> [ <plugin2>] [--offline] [--online]",
        args=(1, None),
        banner=_asking,
        tools=_P,
        examples=("is_enabled rabbitmq_management",),
    ),
    Command(
        "enable",
        _G,
        "Exits with 69 unless these are built in",
        enable,
        usage="<plugin1> [ <plugin2>] | --all [--offline] [--online]",
        args=(0, None),
        banner=lambda call: f"Enabling plugins on node {call.node}:\n" + "\n".join(call.args),
        options=_WHERE,
        tools=_P,
    ),
    Command(
        "disable",
        _G,
        "Refuses: nothing can be turned off",
        disable,
        usage="<plugin1> [ <plugin2>] | --all [--offline] [--online]",
        args=(0, None),
        banner=lambda call: f"Disabling plugins on node {call.node}:\n" + "\n".join(call.args),
        options=_WHERE,
        tools=_P,
    ),
)
