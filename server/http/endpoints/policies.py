"""Policies and operator policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import Policy, PolicyKind, VHost
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, put
from qlog.server.http.ask import Ask, required
from qlog.server.http.refusals import not_found, refusal
from qlog.server.http.table import Endpoint, Handler


def policy_facts(vhost: VHost, policy: Policy) -> dict[str, Any]:
    """A policy as RabbitMQ shows it."""
    return {"vhost": vhost.name, "name": policy.name, **policy.fields}


def _listing(kind: PolicyKind) -> Handler:
    async def handler(ask: Ask) -> Listing[Any]:
        def policies() -> Iterator[tuple[VHost, Policy]]:
            for vhost in ask.vhosts():
                for policy in ask.operations.policies(vhost, kind):
                    yield vhost, policy

        return Listing(
            policies(),
            lambda pair: policy_facts(*pair),
            name=lambda pair: pair[1].name,
            order=lambda pair: (pair[0].name, pair[1].name),
        )

    return handler


def _find(ask: Ask, kind: PolicyKind) -> tuple[VHost, Policy | None]:
    vhost = ask.vhost()
    for policy in ask.operations.policies(vhost, kind):
        if policy.name == ask.path["policy"]:
            return vhost, policy
    return vhost, None


def _showing(kind: PolicyKind) -> Handler:
    async def handler(ask: Ask) -> dict[str, Any]:
        vhost, policy = _find(ask, kind)
        if policy is None:
            raise not_found()
        return policy_facts(vhost, policy)

    return handler


def _setting(kind: PolicyKind) -> Handler:
    async def handler(ask: Ask) -> Answer:
        if not any(vhost.name == ask.path["vhost"] for vhost in ask.operations.vhosts()):
            raise refusal(404, "not_found", "vhost_not_found")
        vhost, before = _find(ask, kind)
        document = await ask.document()
        pattern, definition = required(document, "pattern", "definition")
        outcome = ask.operations.set_policy(
            vhost,
            kind,
            ask.path["policy"],
            pattern=pattern,
            definition=definition,
            priority=document.get("priority", 0),
            apply_to=document.get("apply-to", "all"),
        )
        await ask.settled(outcome)
        return put(before is not None)

    return handler


def _deleting(kind: PolicyKind) -> Handler:
    async def handler(ask: Ask) -> Answer:
        vhost, policy = _find(ask, kind)
        if policy is None:
            raise not_found()
        await ask.settled(ask.operations.delete_policy(vhost, kind, policy.name))
        return NO_CONTENT

    return handler


_BODY = {
    "pattern": {"type": "string"},
    "definition": {"type": "object"},
    "priority": {"type": "number"},
    "apply-to": {"type": "string"},
}


def _endpoints(path: str, kind: PolicyKind) -> list[Endpoint]:
    what = kind.replace("_", " ").replace("policy", "policies")
    one = f"{path}/{{vhost}}/{{policy}}"
    return [
        Endpoint("GET", path, _listing(kind), f"All {what}"),
        Endpoint("GET", f"{path}/{{vhost}}", _listing(kind), f"The {what} of a vhost"),
        Endpoint("GET", one, _showing(kind), "One of them"),
        Endpoint(
            "PUT",
            one,
            _setting(kind),
            "Set one",
            tag="policymaker",
            body=_BODY,
            required=("pattern", "definition"),
            status=201,
        ),
        Endpoint("DELETE", one, _deleting(kind), "Delete one", tag="policymaker", status=204),
    ]


ENDPOINTS = [
    *_endpoints("/policies", "policy"),
    *_endpoints("/operator-policies", "operator_policy"),
]
