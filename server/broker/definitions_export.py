"""All definitions, or those of one vhost, in JSON as RabbitMQ exports them.

What is written here, definitions_file.py loads.
"""

from __future__ import annotations

from typing import Any

from qlog import __version__
from qlog.routing.binding import Binding
from qlog.server.broker.access.passwords import hash_text
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.definitions_file import SECTIONS, VHOST_SECTIONS
from qlog.server.broker.jobs import Steps
from qlog.server.broker.listings.facts import declared_exchange
from qlog.server.broker.listings.values import json_value
from qlog.server.broker.operations import Operations
from qlog.server.broker.queues.type import Declaration
from qlog.server.broker.removals import RESERVED_PREFIX
from qlog.server.broker.vhost import VHost


def exporting(
    operations: Operations,
    users: dict[str, User],
    definitions: Definitions,
    version: str,
    only: VHost | None = None,
) -> Steps[dict[str, Any]]:
    """A job that gathers all definitions, or those of a vhost, as RabbitMQ writes them.

    Exclusive queues, their bindings, and what every vhost has are left out. What is declared or
    deleted meanwhile may be in it or not.
    """
    document: dict[str, Any] = {
        "rabbit_version": version,
        "rabbitmq_version": version,
        "product_name": "qlog",
        "product_version": __version__,
        "rabbitmq_definition_format": "cluster",
        **{section: [] for section in SECTIONS},
    }
    for user in list(users.values()) if only is None else ():
        _add_user(document, user)
        yield
    for name, value in definitions.global_parameters() if only is None else ():
        document["global_parameters"].append({"name": name, "value": value})
    for vhost in operations.vhosts() if only is None else [only]:
        _add_vhost(document, vhost)
        yield
        for exchange in operations.exchanges(vhost):
            if exchange.name and not exchange.name.startswith(RESERVED_PREFIX):
                document["exchanges"].append(declared_exchange(vhost, exchange))
            yield
        for queue in operations.queues(vhost):
            if not queue.declared.exclusive:
                document["queues"].append(_queue(vhost, queue.declared))
            yield
        for binding in operations.bindings(vhost):
            if _is_exported(vhost, binding):
                document["bindings"].append(_binding(vhost, binding))
            yield
    return document if only is None else _of_vhost(document, only)


def _of_vhost(document: dict[str, Any], vhost: VHost) -> dict[str, Any]:
    """The definitions of one vhost as RabbitMQ writes them: without users, and without its name."""
    (about,) = document["vhosts"]
    found = {key: value for key, value in document.items() if key not in SECTIONS}
    found["rabbitmq_definition_format"] = "single_virtual_host"
    found["original_vhost_name"] = vhost.name
    found["metadata"] = about["metadata"]
    found["description"] = vhost.settings.description
    found["default_queue_type"] = vhost.settings.default_queue_type or "classic"
    found["limits"] = []
    for section in VHOST_SECTIONS:
        found[section] = [
            {key: value for key, value in item.items() if key != "vhost"}
            for item in document[section]
        ]
    return found


def _add_user(document: dict[str, Any], user: User) -> None:
    """A user with the permissions."""
    document["users"].append(
        {
            "name": user.name,
            "password_hash": hash_text(user.password_hash),
            "hashing_algorithm": user.hashing_algorithm,
            "tags": list(user.tags),
            "limits": dict(user.limits),
        }
    )
    for vhost, (configure, write, read) in user.permissions.items():
        rights = {"configure": configure, "write": write, "read": read}
        document["permissions"].append({"user": user.name, "vhost": vhost, **rights})
    for vhost, topics in user.topic_permissions.items():
        for exchange, (write, read) in topics.items():
            limited = {"exchange": exchange, "write": write, "read": read}
            document["topic_permissions"].append({"user": user.name, "vhost": vhost, **limited})


def _queue(vhost: VHost, declared: Declaration) -> dict[str, Any]:
    """A queue; with its type, if a declaration without one would make it another one there."""
    arguments = json_value(declared.arguments.table)
    if vhost.settings.default_queue_type is not None:
        arguments = {**arguments, "x-queue-type": declared.arguments.type}
    return {
        "name": declared.name,
        "vhost": declared.vhost,
        "type": declared.arguments.type,
        "durable": declared.durable,
        "auto_delete": declared.auto_delete,
        "arguments": arguments,
    }


def _add_vhost(document: dict[str, Any], vhost: VHost) -> None:
    """A vhost with its limits and policies."""
    settings = vhost.settings
    metadata: dict[str, Any] = {"description": settings.description, "tags": list(settings.tags)}
    if settings.default_queue_type is not None:
        metadata["default_queue_type"] = settings.default_queue_type
    protection = {"protected_from_deletion": True} if settings.protected_from_deletion else {}
    document["vhosts"].append({"name": vhost.name, **metadata, "metadata": metadata | protection})
    if settings.limits:
        document["parameters"].append(
            {
                "vhost": vhost.name,
                "component": "vhost-limits",
                "name": "limits",
                "value": dict(settings.limits),
            }
        )
    for policy in vhost.policies.all("policy"):
        document["policies"].append({"vhost": vhost.name, "name": policy.name, **policy.fields})
    for policy in vhost.policies.all("operator_policy"):
        document["parameters"].append(
            {
                "vhost": vhost.name,
                "component": "operator_policy",
                "name": policy.name,
                "value": policy.fields,
            }
        )


def _is_exported(vhost: VHost, binding: Binding) -> bool:
    if not binding.source:
        return False
    queue = vhost.queues.get(binding.destination) if binding.kind == "queue" else None
    return binding.kind == "exchange" or (queue is not None and not queue.declared.exclusive)


def _binding(vhost: VHost, binding: Binding) -> dict[str, Any]:
    return {
        "source": binding.source,
        "vhost": vhost.name,
        "destination": binding.destination,
        "destination_type": binding.kind,
        "routing_key": binding.routing_key,
        "arguments": json_value(binding.arguments),
    }
