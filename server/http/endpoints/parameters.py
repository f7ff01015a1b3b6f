"""Parameters: the limits of vhosts and operator policies by their old name, and global ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import PolicyKind, VHost
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, put
from qlog.server.http.ask import Ask, required
from qlog.server.http.refusals import bad_request, not_found
from qlog.server.http.table import Endpoint

LIMITS = "vhost-limits"
OPERATOR_POLICY: PolicyKind = "operator_policy"
_POLICY_FIELDS = ("pattern", "definition", "priority", "apply-to")

Parameter = dict[str, Any]


def _parameters(ask: Ask) -> Iterator[Parameter]:
    """What RabbitMQ keeps as parameters of vhosts; names and components as the path has them."""
    component = ask.path.get("component")
    for vhost in ask.vhosts():
        if component in (None, LIMITS) and vhost.settings.limits:
            yield _parameter(vhost, LIMITS, "limits", dict(vhost.settings.limits))
        if component not in (None, OPERATOR_POLICY):
            continue
        for policy in ask.operations.policies(vhost, OPERATOR_POLICY):
            yield _parameter(vhost, OPERATOR_POLICY, policy.name, policy.fields)


def _parameter(vhost: VHost, component: str, name: str, value: Any) -> Parameter:
    return {"value": value, "vhost": vhost.name, "component": component, "name": name}


async def list_parameters(ask: Ask) -> Listing[Parameter]:
    """All parameters."""
    return Listing(_parameters(ask), lambda parameter: parameter)


def _parameter_of(ask: Ask) -> Parameter:
    """That of the path. Raises 404."""
    for parameter in _parameters(ask):
        if parameter["name"] == ask.path["name"]:
            return parameter
    raise not_found()


async def show_parameter(ask: Ask) -> Parameter:
    """One parameter."""
    return _parameter_of(ask)


async def set_parameter(ask: Ask) -> Answer:
    """Set a parameter."""
    vhost, component, name = ask.vhost(), ask.path["component"], ask.path["name"]
    existed = any(parameter["name"] == name for parameter in _parameters(ask))
    (value,) = required(await ask.document(), "value")
    if component == LIMITS:
        await ask.settled(ask.operations.set_vhost_limits(vhost, value))
    elif component == OPERATOR_POLICY:
        if not isinstance(value, dict):
            raise bad_request("Validation failed\n\nvalue should be a map\n")
        for field in ("priority", "pattern", "definition"):
            if field not in value:
                raise bad_request(f'Validation failed\n\nKey "{field}" not found in {name}\n')
        outcome = ask.operations.set_policy(
            vhost,
            OPERATOR_POLICY,
            name,
            pattern=value["pattern"],
            definition=value["definition"],
            priority=value["priority"],
            apply_to=value.get("apply-to", "all"),
        )
        await ask.settled(outcome)
    else:
        raise bad_request(f"Validation failed\n\ncomponent {component} not found\n")
    return put(existed)


async def delete_parameter(ask: Ask) -> Answer:
    """Delete a parameter."""
    parameter = _parameter_of(ask)
    if parameter["component"] == LIMITS:
        await ask.settled(ask.operations.set_vhost_limits(ask.vhost(), {}))
    else:
        outcome = ask.operations.delete_policy(ask.vhost(), OPERATOR_POLICY, parameter["name"])
        await ask.settled(outcome)
    return NO_CONTENT


# -- limits of vhosts


async def list_limits(ask: Ask) -> Listing[VHost]:
    """The limits of vhosts that have some."""
    return Listing(
        (vhost for vhost in ask.vhosts() if vhost.settings.limits),
        lambda vhost: {"value": dict(vhost.settings.limits), "vhost": vhost.name},
    )


async def set_limit(ask: Ask) -> Answer:
    """Set a limit of a vhost."""
    vhost = ask.vhost()
    (value,) = required(await ask.document(), "value")
    limits = {**vhost.settings.limits, ask.path["limit"]: value}
    await ask.settled(ask.operations.set_vhost_limits(vhost, limits))
    return NO_CONTENT


async def delete_limit(ask: Ask) -> Answer:
    """Take a limit of a vhost away."""
    vhost = ask.vhost()
    limits = {name: one for name, one in vhost.settings.limits.items() if name != ask.path["limit"]}
    await ask.settled(ask.operations.set_vhost_limits(vhost, limits))
    return NO_CONTENT


# -- global parameters


async def list_global(ask: Ask) -> Listing[tuple[str, Any]]:
    """All global parameters."""
    return Listing(ask.operations.global_parameters(), _global, order=lambda pair: pair[0])


def _global(pair: tuple[str, Any]) -> dict[str, Any]:
    return {"name": pair[0], "value": pair[1]}


def _global_of(ask: Ask) -> tuple[str, Any]:
    for pair in ask.operations.global_parameters():
        if pair[0] == ask.path["name"]:
            return pair
    raise not_found()


async def show_global(ask: Ask) -> dict[str, Any]:
    """One global parameter."""
    return _global(_global_of(ask))


async def set_global(ask: Ask) -> Answer:
    """Set a global parameter."""
    name = ask.path["name"]
    (value,) = required(await ask.document(), "value")
    existed = any(pair[0] == name for pair in ask.operations.global_parameters())
    await ask.settled(ask.operations.set_global_parameter(name, value))
    return put(existed)


async def delete_global(ask: Ask) -> Answer:
    """Delete a global parameter."""
    name, _ = _global_of(ask)
    await ask.settled(ask.operations.delete_global_parameter(name))
    return NO_CONTENT


async def cluster_name(ask: Ask) -> dict[str, Any]:
    """What operators call the broker."""
    return {"name": ask.operations.about().cluster_name}


async def set_cluster_name(ask: Ask) -> Answer:
    """Call the broker otherwise."""
    (name,) = required(await ask.document(), "name")
    if not isinstance(name, str):
        raise bad_request(["not_a_string", name])
    await ask.settled(ask.operations.set_global_parameter("cluster_name", name))
    return NO_CONTENT


_VALUE: dict[str, Any] = {"value": {}}
_ONE = "/parameters/{component}/{vhost}/{name}"
_LIMIT = "/vhost-limits/{vhost}/{limit}"

ENDPOINTS = [
    Endpoint("GET", "/parameters", list_parameters, "All parameters", tag="policymaker"),
    Endpoint("GET", "/parameters/{component}", list_parameters, "Of a kind", tag="policymaker"),
    Endpoint(
        "GET",
        "/parameters/{component}/{vhost}",
        list_parameters,
        "Of a kind, in a vhost",
        tag="policymaker",
    ),
    Endpoint("GET", _ONE, show_parameter, "One parameter", tag="policymaker"),
    Endpoint(
        "PUT",
        _ONE,
        set_parameter,
        "Set a parameter",
        tag="policymaker",
        body=_VALUE,
        required=("value",),
        status=201,
    ),
    Endpoint("DELETE", _ONE, delete_parameter, "Delete a parameter", tag="policymaker", status=204),
    Endpoint("GET", "/vhost-limits", list_limits, "The limits of all vhosts"),
    Endpoint("GET", "/vhost-limits/{vhost}", list_limits, "The limits of a vhost"),
    Endpoint(
        "PUT",
        _LIMIT,
        set_limit,
        "Set a limit",
        tag="administrator",
        body={"value": {"type": "integer"}},
        required=("value",),
        status=204,
    ),
    Endpoint("DELETE", _LIMIT, delete_limit, "Delete it", tag="administrator", status=204),
    Endpoint("GET", "/global-parameters", list_global, "All of them", tag="policymaker"),
    Endpoint("GET", "/global-parameters/{name}", show_global, "One", tag="policymaker"),
    Endpoint(
        "PUT",
        "/global-parameters/{name}",
        set_global,
        "Set one",
        tag="administrator",
        body=_VALUE,
        required=("value",),
        status=201,
    ),
    Endpoint(
        "DELETE",
        "/global-parameters/{name}",
        delete_global,
        "Delete one",
        tag="administrator",
        status=204,
    ),
    Endpoint("GET", "/cluster-name", cluster_name, "What the broker is called"),
    Endpoint(
        "PUT",
        "/cluster-name",
        set_cluster_name,
        "Call it otherwise",
        tag="administrator",
        body={"name": {"type": "string"}},
        required=("name",),
        status=204,
    ),
]
