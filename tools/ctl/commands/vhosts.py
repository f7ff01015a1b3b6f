"""Virtual hosts: what is set about them, their limits, their firehose."""

from __future__ import annotations

from typing import Any

from qlog.tools.ctl.command import (
    NO_PARAMETER,
    BadUsage,
    Call,
    Command,
    Failure,
    Message,
    Option,
    Options,
    Rows,
    Status,
    bad_argument,
    no_vhost,
    wanted_columns,
)
from qlog.tools.ctl.commands import documents
from qlog.tools.ctl.values import to_json

COLUMNS = (
    "cluster_state",
    "default_queue_type",
    "description",
    "name",
    "protected_from_deletion",
    "tags",
    "tracing",
)
LIMITS = ("max-connections", "max-queues")
QUEUE_TYPES = ("quorum", "stream", "classic")
_UNKNOWN_LIMIT = "Validation failed\n\nUnrecognised terms {} in limits\n"


def _check_queue_type(args: list[str], options: Options) -> None:
    wanted = options.get("default_queue_type")
    if wanted is not None and wanted not in QUEUE_TYPES:
        raise bad_argument(
            f"Default queue type must be one of: {', '.join(QUEUE_TYPES)}. Provided: {wanted}"
        )


def _check_metadata(args: list[str], options: Options) -> None:
    if not any(name in options for name in ("description", "tags", "default_queue_type")):
        raise BadUsage("not enough arguments.")
    _check_queue_type(args, options)


def _settings(options: Options) -> dict[str, Any]:
    """What the options say about a vhost."""
    found: dict[str, Any] = {}
    if "description" in options:
        found["description"] = options["description"]
    if "tags" in options:
        found["tags"] = [tag.strip() for tag in options["tags"].split(",") if tag.strip()]
    if "default_queue_type" in options:
        found["default_queue_type"] = options["default_queue_type"]
    return found


def _change(call: Call, name: str, changes: dict[str, Any], missing: Failure) -> None:
    """Change something about a vhost; the rest stays."""
    vhost = call.get("vhosts", name, missing=missing)
    kept = {"description": vhost.get("description", ""), "tags": vhost.get("tags", [])}
    queue_type = vhost.get("default_queue_type")
    if queue_type in QUEUE_TYPES:
        kept["default_queue_type"] = queue_type
    call.ask("PUT", "vhosts", name, body={**kept, **changes})


def add_vhost(call: Call) -> None:
    """Make a vhost. One that is there stays as it is, but for what the options say."""
    name = call.args[0]
    settings = _settings(call.options)
    if call.exists("vhosts", name):
        if settings:
            _change(call, name, settings, no_vhost(name))
        return
    call.ask("PUT", "vhosts", name, body=settings)


def update_vhost_metadata(call: Call) -> None:
    """Change what is set about a vhost."""
    name = call.args[0]
    _change(call, name, _settings(call.options), no_vhost(name))


def set_vhost_tags(call: Call) -> None:
    """Give a vhost these tags."""
    name, *tags = call.args
    missing = Failure(f'Virtual host "{name}" does not exist', Status.DATA)
    _change(call, name, {"tags": tags}, missing)


def delete_vhost(call: Call) -> None:
    """Delete a vhost with all that is in it."""
    call.ask("DELETE", "vhosts", call.args[0], missing=no_vhost(call.args[0]))


def _protecting(method: str) -> Any:
    def run(call: Call) -> None:
        (name,) = call.args
        call.ask(method, "vhosts", name, "deletion", "protection", missing=no_vhost(name))

    return run


def list_vhosts(call: Call) -> Rows:
    """Names, or other columns."""
    return Rows(wanted_columns(call, ("name",)), call.get("vhosts"))


def restart_vhost(call: Call) -> Message:
    """Nothing has to be started again: a vhost runs as long as the broker does."""
    call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
    return Message(f"Vhost '{call.vhost}' is already running on node '{call.node}'")


def _tracing(on: bool) -> Any:
    def run(call: Call) -> Message:
        _change(call, call.vhost, {"tracing": on}, no_vhost(call.vhost))
        return Message(f"Trace {'enabled' if on else 'disabled'} for vhost {call.vhost}")

    return run


# -- limits ----------------------------------------------------------------------------------


def set_vhost_limits(call: Call) -> None:
    """Limit connections and queues; these limits replace those before."""
    call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
    limits = documents.limits(call.args[0], LIMITS, _UNKNOWN_LIMIT)
    path = ("parameters", "vhost-limits", call.vhost, "limits")
    call.ask("PUT", *path, body={"value": limits})


def list_vhost_limits(call: Call) -> Message | Rows:
    """The limits of a vhost, or of all."""
    if call.options.get("global"):
        rows = (
            {"vhost": item["vhost"], "limits": to_json(dict(sorted(item["value"].items())))}
            for item in call.get("vhost-limits")
        )
        return Rows(("vhost", "limits"), rows)
    call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
    found = call.get("vhost-limits", call.vhost)
    return Message(to_json(dict(sorted(found[0]["value"].items()))) if found else "")


def _limits_banner(call: Call) -> str:
    if call.options.get("global"):
        return "Listing limits for all vhosts ..."
    return f'Listing limits for vhost "{call.vhost}" ...'


def clear_vhost_limits(call: Call) -> None:
    """Take all limits of a vhost away."""
    path = ("parameters", "vhost-limits", call.vhost, "limits")
    call.ask("DELETE", *path, missing=NO_PARAMETER)


_G = "Virtual hosts"
_METADATA = (
    Option("description", about="a text for people"),
    Option("tags", about="names, joined by commas"),
    Option("default_queue_type", about="the type of queues that are declared without one"),
)

COMMANDS = (
    Command(
        "add_vhost",
        _G,
        "Makes a virtual host, which nobody may enter yet",
        add_vhost,
        usage='<vhost> [--description <description> --tags "<tag1>,<tag2>,<...>" '
        "--default-queue-type <quorum|classic|stream>]",
        args=(1, 1),
        banner='Adding vhost "{0}" ...',
        options=_METADATA,
        check=_check_queue_type,
        examples=("add_vhost orders --default-queue-type quorum",),
    ),
    Command(
        "update_vhost_metadata",
        _G,
        "Changes what is set about a virtual host",
        update_vhost_metadata,
        usage='<vhost> [--description <description>] [--tags "<tag1>,<tag2>,<...>"] '
        "[--default-queue-type <quorum|classic|stream>]",
        args=(1, 1),
        banner='Updating metadata of vhost "{0}" ...',
        options=_METADATA,
        check=_check_metadata,
        examples=("update_vhost_metadata orders --description 'of the shop'",),
    ),
    Command(
        "set_vhost_tags",
        _G,
        "Sets the tags of a virtual host",
        set_vhost_tags,
        usage="<vhost> <tag> [...]",
        args=(1, None),
        banner='Setting tags for virtual host "{0}" to [{all}] ...',
        examples=("set_vhost_tags orders production",),
    ),
    Command(
        "delete_vhost",
        _G,
        "Deletes a virtual host with all queues and messages in it",
        delete_vhost,
        usage="<vhost>",
        args=(1, 1),
        banner='Deleting vhost "{0}" ...',
        examples=("delete_vhost orders",),
    ),
    Command(
        "enable_vhost_deletion_protection",
        _G,
        "Protects a virtual host from deletion",
        _protecting("POST"),
        usage="<vhost>",
        args=(1, 1),
        banner='Protecting vhost "{0}" from deletion ...',
        examples=("enable_vhost_deletion_protection orders",),
    ),
    Command(
        "disable_vhost_deletion_protection",
        _G,
        "Lets a virtual host be deleted again",
        _protecting("DELETE"),
        usage="<vhost>",
        args=(1, 1),
        banner='Removing the protection of vhost "{0}" from deletion ...',
        examples=("disable_vhost_deletion_protection orders",),
    ),
    Command(
        "list_vhosts",
        "Access Control",
        "Lists virtual hosts",
        list_vhosts,
        usage="[--no-table-headers] [<column> ...] [--timeout <timeout>]",
        args=(0, None),
        banner="Listing vhosts ...",
        columns=COLUMNS,
        tools=("ctl", "diagnostics"),
        examples=("list_vhosts name tags", "list_vhosts --formatter json"),
    ),
    Command(
        "restart_vhost",
        _G,
        "Says that a virtual host runs",
        restart_vhost,
        usage="[--vhost <vhost>] [--timeout <timeout>]",
        banner=lambda call: f"Trying to restart vhost '{call.vhost}' on node '{call.node}' ...",
        examples=("restart_vhost -p orders",),
    ),
    Command(
        "trace_on",
        _G,
        "Copies all messages of a virtual host to the exchange amq.rabbitmq.trace",
        _tracing(True),
        usage="[--vhost <vhost>]",
        banner='Starting tracing for vhost "{vhost}" ...',
        examples=("trace_on -p orders",),
    ),
    Command(
        "trace_off",
        _G,
        "Ends that",
        _tracing(False),
        usage="[--vhost <vhost>]",
        banner='Stopping tracing for vhost "{vhost}" ...',
        examples=("trace_off -p orders",),
    ),
    Command(
        "set_vhost_limits",
        _G,
        "Limits the connections and queues of a virtual host",
        set_vhost_limits,
        usage="[--vhost <vhost>] <definition>",
        args=(1, 1),
        banner='Setting vhost limits to "{0}" for vhost "{vhost}" ...',
        arguments={"<definition>": f"JSON with {' and '.join(LIMITS)}; -1: no limit"},
        examples=("""set_vhost_limits -p orders '{"max-queues": 100}'""",),
    ),
    Command(
        "list_vhost_limits",
        _G,
        "Shows the limits of a virtual host, or of all",
        list_vhost_limits,
        usage="[--vhost <vhost>] [--global] [--no-table-headers]",
        banner=_limits_banner,
        options=(Option("global", bool, about="those of all virtual hosts"),),
        tools=("ctl", "diagnostics"),
        examples=("list_vhost_limits --global",),
    ),
    Command(
        "clear_vhost_limits",
        _G,
        "Takes the limits of a virtual host away",
        clear_vhost_limits,
        usage="[--vhost <vhost>]",
        banner='Clearing vhost "{vhost}" limits ...',
        examples=("clear_vhost_limits -p orders",),
    ),
)
