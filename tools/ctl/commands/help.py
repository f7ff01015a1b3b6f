"""Help, and commands of RabbitMQ that there is little to do for."""

from __future__ import annotations

from typing import Any

from qlog.tools.ctl.command import (
    TIMEOUT,
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


def help_(call: Call) -> None:
    """Help is given before anything is asked (main.py)."""


def autocomplete(call: Call) -> Message:
    """The commands that begin so."""
    from qlog.tools.ctl.table import commands_of

    return Message(
        "\n".join(sorted(n for n in commands_of(call.tool) if n.startswith(call.args[0])))
    )


def _check_shell(args: list[str], options: Options) -> None:
    from qlog.tools.ctl.completion import SHELLS

    if args[0] not in SHELLS:
        raise bad_argument(f"the shell is one of {', '.join(SHELLS)}")


def completion(call: Call) -> Message:
    """A script that completes commands, options and columns."""
    from qlog.tools.ctl.completion import script
    from qlog.tools.ctl.table import commands_of
    from qlog.tools.ctl.words import BEHIND

    return Message(script(call.args[0], commands_of("ctl"), BEHIND))


def version(call: Call) -> Document:
    """The version of RabbitMQ that the broker stands for; that of qlog without a broker."""
    from qlog import __version__

    return Document({"version": __version__}, __version__)


def list_hashes(call: Call) -> Message:
    """The hashes that passwords are imported with."""
    return Message("[sha256,sha512,md5,argon2id]")


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
    """A signal does that."""
    raise Failure("This command does not rotate logs anymore [deprecated]", Status.UNAVAILABLE)


_M = "Monitoring, observability and health checks"
_ALL = ("ctl", "diagnostics", "queues", "plugins")
_BOTH = ("ctl", "diagnostics")

COMMANDS = (
    Command(
        "autocomplete",
        "Help",
        "Lists the commands that begin with a text",
        autocomplete,
        usage=f"[prefix] {TIMEOUT}",
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
        "list_feature_flags",
        "Feature flags",
        "Lists feature flags",
        list_feature_flags,
        usage=f"[<column> ...] {TIMEOUT}",
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
        "list_hashes",
        _M,
        "Lists hashes that passwords are imported with",
        list_hashes,
        banner="Listing supported hash algorithms ...",
        tools=_BOTH,
    ),
    Command(
        "reconcile_vhosts",
        "Virtual hosts",
        "Does nothing: a virtual host is where its broker is",
        _nothing(""),
        usage=TIMEOUT,
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
    Command("rotate_logs", "Nodes", "Does nothing: SIGHUP opens the log's file again", rotate_logs),
    Command(
        "node_health_check",
        "Deprecated",
        "Does nothing; see check_running and its kin",
        _nothing(
            "This command is DEPRECATED and is a no-op. It will be removed in a future version. "
            "\nUse one of the options covered in "
            "https://www.rabbitmq.com/monitoring.html#health-checks instead."
        ),
        usage=TIMEOUT,
        tools=_BOTH,
    ),
)
