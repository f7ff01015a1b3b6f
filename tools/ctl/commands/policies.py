"""Policies, operator policies, and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlog.tools.ctl.command import (
    NO_PARAMETER,
    Call,
    Command,
    Failure,
    Option,
    Rows,
    Run,
    Status,
    no_vhost,
)
from qlog.tools.ctl.commands import documents
from qlog.tools.ctl.values import to_json

_COLUMNS = ("vhost", "name", "pattern", "apply-to", "definition", "priority")
_APPLY_TO = "queues, classic_queues, quorum_queues, streams, exchanges, or all (the default)"


def _set_policy(path: str) -> Run:
    def run(call: Call) -> None:
        name, pattern, text = call.args
        call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
        body = {
            "pattern": pattern,
            "definition": documents.parsed(text),
            "priority": call.options.get("priority", 0),
            "apply-to": call.options.get("apply_to", "all"),
        }
        call.ask("PUT", path, call.vhost, name, body=body)

    return run


def _clear(path: str) -> Run:
    def run(call: Call) -> None:
        call.ask("DELETE", path, call.vhost, call.args[0], missing=NO_PARAMETER)

    return run


def _list(path: str) -> Run:
    def run(call: Call) -> Rows:
        call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
        return Rows(_COLUMNS, _shown(call.get(path, call.vhost), "definition"))

    return run


def _shown(items: list[dict[str, Any]], column: str) -> Iterator[Mapping[str, Any]]:
    for item in items:
        yield {**item, column: to_json(item[column])}


def list_policies_that_match(call: Call) -> Rows:
    """The policies of a vhost whose patterns an object's name fits, the one that applies first."""
    kind, name = call.options.get("object_type", "queue"), call.args[0]
    missing = Failure(
        "Object (queue, stream, exchange, etc) was not found", Status.DATA, plain=True
    )
    call.get(f"{kind}s", call.vhost, name, missing=missing)
    found = call.get("qlog", "policies", call.vhost, kind, name)
    return Rows(_COLUMNS, _shown(found, "definition"))


# -- parameters --------------------------------------------------------------------------------


def set_parameter(call: Call) -> None:
    """A parameter of a component, in a vhost."""
    component, name, text = call.args
    value = documents.parsed(text)
    call.ask("PUT", "parameters", component, call.vhost, name, body={"value": value})


def clear_parameter(call: Call) -> None:
    """Take a parameter away."""
    component, name = call.args
    call.ask("DELETE", "parameters", component, call.vhost, name, missing=NO_PARAMETER)


def list_parameters(call: Call) -> Rows:
    """The parameters of a vhost; policies have commands of their own."""
    call.get("vhosts", call.vhost, missing=no_vhost(call.vhost))
    found = [item for item in call.get("parameters") if item["vhost"] == call.vhost]
    return Rows(("component", "name", "value"), _shown(found, "value"))


def set_global_parameter(call: Call) -> None:
    """A parameter of the broker."""
    name, text = call.args
    call.ask("PUT", "global-parameters", name, body={"value": documents.parsed(text)})


def clear_global_parameter(call: Call) -> None:
    """Take one away."""
    call.ask("DELETE", "global-parameters", call.args[0], missing=NO_PARAMETER)


def list_global_parameters(call: Call) -> Rows:
    """All of them."""
    return Rows(("name", "value"), _shown(call.get("global-parameters"), "value"))


_G = "Policies"
_P = "Parameters"
_BOTH = ("ctl", "diagnostics")
_SET_USAGE = (
    "[--vhost <vhost>] [--priority <priority>] [--apply-to <apply-to>] "
    "<name> <pattern> <definition>"
)
_LIST_USAGE = "[--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]"
_SET_OPTIONS = (
    Option("priority", int, about="of those that match, the one with the highest applies"),
    Option("apply_to", about=_APPLY_TO),
)
_SET_ARGUMENTS = {
    "<pattern>": "a pattern that is looked for in names of queues and exchanges",
    "<definition>": "JSON: keys and values, such as max-length",
}
_SET_TEXT = ' "{0}" for pattern "{1}" to "{2}" with priority "'


def _set_banner(what: str) -> Any:
    def banner(call: Call) -> str:
        priority = call.options.get("priority", 0)
        said = _SET_TEXT.format(*call.args)
        return f'Setting {what}{said}{priority}" for vhost "{call.vhost}" ...'

    return banner


COMMANDS = (
    Command(
        "set_policy",
        _G,
        "Sets a policy, or changes one",
        _set_policy("policies"),
        usage=_SET_USAGE,
        args=(3, 3),
        banner=_set_banner("policy"),
        options=_SET_OPTIONS,
        arguments=_SET_ARGUMENTS,
        examples=(
            """set_policy short '^tmp' '{"message-ttl": 60000}' --apply-to queues""",
            """set_policy -p orders bounded '.*' '{"max-length": 10000}' --priority 5""",
        ),
    ),
    Command(
        "clear_policy",
        _G,
        "Takes a policy away",
        _clear("policies"),
        usage="[--vhost <vhost>] <name>",
        args=(1, 1),
        banner='Clearing policy "{0}" on vhost "{vhost}" ...',
        examples=("clear_policy short",),
    ),
    Command(
        "list_policies",
        _G,
        "Lists the policies of a virtual host",
        _list("policies"),
        usage=_LIST_USAGE,
        banner='Listing policies for vhost "{vhost}" ...',
        tools=_BOTH,
        examples=("list_policies -p /",),
    ),
    Command(
        "list_policies_that_match",
        _G,
        "Lists the policies that a queue's or an exchange's name fits, the one that applies first",
        list_policies_that_match,
        usage="[--object-type <type>] <name>",
        args=(1, 1),
        banner=lambda call: (
            f"Listing policies that match {call.options.get('object_type', 'queue')} "
            f"'{call.args[0]}' in vhost '{call.vhost}' ..."
        ),
        options=(Option("object_type", about="queue (the default) or exchange"),),
        tools=("diagnostics",),
        examples=("list_policies_that_match -p / orders",),
    ),
    Command(
        "set_operator_policy",
        _G,
        "Sets a policy that bounds what the others say",
        _set_policy("operator-policies"),
        usage=_SET_USAGE,
        args=(3, 3),
        banner=_set_banner("operator policy override"),
        options=_SET_OPTIONS,
        arguments=_SET_ARGUMENTS,
        examples=("""set_operator_policy bound '.*' '{"max-length": 1000000}'""",),
    ),
    Command(
        "clear_operator_policy",
        _G,
        "Takes an operator policy away",
        _clear("operator-policies"),
        usage="[--vhost <vhost>] <name>",
        args=(1, 1),
        banner='Clearing operator policy "{0}" on vhost "{vhost}" ...',
        examples=("clear_operator_policy bound",),
    ),
    Command(
        "list_operator_policies",
        _G,
        "Lists the operator policies of a virtual host",
        _list("operator-policies"),
        usage=_LIST_USAGE,
        banner='Listing operator policy overrides for vhost "{vhost}" ...',
        tools=_BOTH,
        examples=("list_operator_policies -p /",),
    ),
    Command(
        "set_parameter",
        _P,
        "Sets a parameter of a component",
        set_parameter,
        usage="[--vhost <vhost>] <component_name> <name> <value>",
        args=(3, 3),
        banner='Setting runtime parameter "{1}" for component "{0}" to "{2}" in vhost "{vhost}" ...',
        examples=("""set_parameter vhost-limits limits '{"max-queues": 100}'""",),
    ),
    Command(
        "clear_parameter",
        _P,
        "Takes a parameter away",
        clear_parameter,
        usage="[--vhost <vhost>] <component_name> <name>",
        args=(2, 2),
        banner='Clearing runtime parameter "{1}" for component "{0}" on vhost "{vhost}" ...',
        examples=("clear_parameter vhost-limits limits",),
    ),
    Command(
        "list_parameters",
        _P,
        "Lists the parameters in a virtual host",
        list_parameters,
        usage=_LIST_USAGE,
        banner='Listing runtime parameters for vhost "{vhost}" ...',
        tools=_BOTH,
        examples=("list_parameters -p /",),
    ),
    Command(
        "set_global_parameter",
        _P,
        "Sets a parameter of the broker",
        set_global_parameter,
        usage="<name> <value>",
        args=(2, 2),
        banner='Setting global runtime parameter "{0}" to "{1}" ...',
        examples=("""set_global_parameter owner '"the shop"'""",),
    ),
    Command(
        "clear_global_parameter",
        _P,
        "Takes a parameter of the broker away",
        clear_global_parameter,
        usage="<name>",
        args=(1, 1),
        banner='Clearing global runtime parameter "{0}" ...',
        examples=("clear_global_parameter owner",),
    ),
    Command(
        "list_global_parameters",
        _P,
        "Lists the parameters of the broker",
        list_global_parameters,
        usage="[--no-table-headers] [--timeout <timeout>]",
        banner="Listing global runtime parameters ...",
        tools=_BOTH,
        examples=("list_global_parameters",),
    ),
)
