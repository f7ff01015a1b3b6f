"""Users: names, passwords, tags, limits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from qlog.tools.ctl.command import (
    Call,
    Command,
    Failure,
    Message,
    Option,
    Options,
    Rows,
    Status,
    bad_argument,
    no_such_user,
    no_user,
)
from qlog.tools.ctl.commands import documents
from qlog.tools.ctl.values import Atom, to_json

_GRANT = (
    "Done. Don't forget to grant the user permissions to some virtual hosts! "
    "See 'rabbitmqctl help set_permissions' to learn more."
)
LIMITS = ("max-connections", "max-channels")
DEFAULT_USER = "guest"
SALT_BYTES = 4
# RabbitMQ's hash: four octets of salt, then SHA-256.
HASH_BYTES_MIN = 4


def _password(call: Call, at: int) -> str:
    """An argument, or a line of stdin: what is typed is not shown."""
    if len(call.args) > at:
        return call.args[at]
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("Password: ")
    print("Password: ")
    return sys.stdin.readline().rstrip("\n")


def _check_hash(args: list[str], options: Options) -> None:
    if not options.get("pre_hashed_password"):
        return
    if len(args) < 2:
        raise bad_argument("password hash was not provided")
    try:
        hashed = base64.b64decode(args[1], validate=True)
    except (binascii.Error, ValueError):
        raise bad_argument("Could not Base64 decode provided password hash value") from None
    if len(hashed) < HASH_BYTES_MIN:
        raise bad_argument("the password hash is too short")


def add_user(call: Call) -> Message:
    """Make a user who may do nothing yet."""
    name = call.args[0]
    body: dict[str, Any] = {"tags": ""}
    if call.options.get("pre_hashed_password"):
        body["password_hash"] = call.args[1]
    else:
        password = _password(call, 1)
        body |= {"password": password} if password else {"password_hash": ""}
    if call.exists("users", name):
        raise Failure(f'User "{name}" already exists', Status.SOFTWARE)
    call.ask("PUT", "users", name, body=body)
    return Message(_GRANT, {"node": call.node, "status": "ok"})


def _change(call: Call, changes: dict[str, Any], missing: Failure) -> None:
    """Change something about a user; the rest stays."""
    name = call.args[0]
    user = call.get("users", name, missing=missing)
    body: dict[str, Any] = {"tags": user["tags"], **changes}
    if "password" not in changes and "password_hash" not in changes:
        body["password_hash"] = user["password_hash"]
        body["hashing_algorithm"] = user["hashing_algorithm"]
    call.ask("PUT", "users", name, body=body)


def change_password(call: Call) -> None:
    """Give a user another password."""
    password = _password(call, 1)
    changes = {"password": password} if password else {"password_hash": ""}
    _change(call, changes, no_user(call.args[0]))


def clear_password(call: Call) -> None:
    """Let a user log in with no password at all."""
    _change(call, {"password_hash": ""}, no_such_user(call.args[0]))


def set_user_tags(call: Call) -> None:
    """Give a user these tags, and no others."""
    _change(call, {"tags": call.args[1:]}, no_user(call.args[0]))


def authenticate_user(call: Call) -> Message:
    """Ask whether a password is right."""
    name = call.args[0]
    password = _password(call, 1)
    wrong = Failure(
        f"Error: failed to authenticate user \"{name}\"\nuser '{name}' - invalid credentials",
        Status.DATA,
    )
    call.ask(
        "POST", "qlog", "users", name, "authenticate", body={"password": password}, missing=wrong
    )
    return Message("Success")


def delete_user(call: Call) -> None:
    """Delete a user; one that is gone is gone."""
    call.take_away("users", call.args[0])


def list_users(call: Call) -> Rows:
    """Names and tags."""
    rows = (
        {"user": user["name"], "tags": [Atom(tag) for tag in user["tags"]]}
        for user in call.get("users")
    )
    return Rows(("user", "tags"), rows)


def set_user_limits(call: Call) -> None:
    """Limit how many connections and channels a user has."""
    name, text = call.args
    limits = documents.limits(text, LIMITS, "Unrecognised terms {} in user-limits")
    call.get("users", name, missing=no_such_user(name))
    for limit, value in limits.items():
        call.ask("PUT", "user-limits", name, limit, body={"value": value})


def list_user_limits(call: Call) -> Message | Rows:
    """The limits of a user, or of all users."""
    if call.options.get("global"):
        rows = (
            {"user": item["user"], "limits": _limits_text(item["value"])}
            for item in call.get("user-limits")
        )
        return Rows(("user", "limits"), rows)
    name = call.options.get("user", DEFAULT_USER)
    call.get("users", name, missing=no_such_user(name))
    found = call.get("user-limits", name)
    return Message(_limits_text(found[0]["value"] if found else {}))


def _limits_text(limits: Mapping[str, int]) -> str:
    return to_json(dict(sorted(limits.items())))


def _limits_banner(call: Call) -> str:
    if call.options.get("global"):
        return "Listing limits for all users ..."
    return f'Listing limits for user "{call.options.get("user", DEFAULT_USER)}" ...'


def clear_user_limits(call: Call) -> None:
    """Take limits away."""
    name, which = call.args
    call.get("users", name, missing=no_such_user(name))
    for limit in LIMITS if which == "all" else (which,):
        if limit in LIMITS:
            call.take_away("user-limits", name, limit)


def _clear_banner(call: Call) -> str:
    name, which = call.args
    what = "all limits" if which == "all" else f'"{which}" limit'
    return f'Clearing {what} for user "{name}" ...'


def hash_password(call: Call) -> Message:
    """A hash that `add_user --pre-hashed-password` takes."""
    salt = os.urandom(SALT_BYTES)
    hashed = salt + hashlib.sha256(salt + _password(call, 0).encode()).digest()
    return Message(base64.b64encode(hashed).decode())


_G = "Users"
_BOTH = ("ctl", "diagnostics")
_HASHED = Option("pre_hashed_password", bool, about="what follows the name is a password's hash")

COMMANDS = (
    Command(
        "add_user",
        _G,
        "Makes a user, who has no permissions yet",
        add_user,
        usage="<username> [<password>] [<password_hash> --pre-hashed-password]",
        args=(1, 2),
        banner='Adding user "{0}" ...',
        options=(_HASHED,),
        check=_check_hash,
        arguments={
            "<username>": "the name",
            "<password>": "the password; it is read from stdin if it is left out, "
            "and an empty one means that no password lets the user in",
        },
        examples=("add_user alice s3cret", "add_user alice < password.txt"),
    ),
    Command(
        "authenticate_user",
        _G,
        "Says whether a password is right; exit status 65 if it is not",
        authenticate_user,
        usage="<username> <password>",
        args=(1, 2),
        banner='Authenticating user "{0}" ...',
        examples=("authenticate_user alice s3cret",),
    ),
    Command(
        "change_password",
        _G,
        "Gives a user another password",
        change_password,
        usage="<username> <password>",
        args=(1, 2),
        banner='Changing password for user "{0}" ...',
        examples=("change_password alice n3wer",),
    ),
    Command(
        "clear_password",
        _G,
        "Takes a user's password away: no password lets the user in",
        clear_password,
        usage="<username>",
        args=(1, 1),
        banner='Clearing password for user "{0}" ...',
        examples=("clear_password alice",),
    ),
    Command(
        "delete_user",
        _G,
        "Deletes a user, whose connections are closed",
        delete_user,
        usage="<username>",
        args=(1, 1),
        banner='Deleting user "{0}" ...',
        examples=("delete_user alice",),
    ),
    Command(
        "list_users",
        _G,
        "Lists users and their tags",
        list_users,
        usage="[--no-table-headers] [--timeout <timeout>]",
        banner="Listing users ...",
        tools=_BOTH,
        examples=("list_users", "list_users --formatter json"),
    ),
    Command(
        "set_user_tags",
        _G,
        "Sets the tags of a user; without tags: none",
        set_user_tags,
        usage="<username> <tag> [...]",
        args=(1, None),
        banner='Setting tags for user "{0}" to [{all}] ...',
        arguments={"<tag>": "administrator, monitoring, policymaker, management, impersonator"},
        examples=("set_user_tags alice administrator", "set_user_tags alice"),
    ),
    Command(
        "set_user_limits",
        _G,
        "Limits a user's connections and channels",
        set_user_limits,
        usage="<username> <definition>",
        args=(2, 2),
        banner='Setting user limits to "{1}" for user "{0}" ...',
        arguments={"<definition>": f"JSON with {' and '.join(LIMITS)}; -1: no limit"},
        examples=("""set_user_limits alice '{"max-connections": 10}'""",),
    ),
    Command(
        "list_user_limits",
        _G,
        "Shows the limits of a user, or of all users",
        list_user_limits,
        usage="[--user <username>] [--global]",
        banner=_limits_banner,
        options=(
            Option("user", about="whose limits (default: guest)"),
            Option("global", bool, about="those of all users"),
        ),
        tools=_BOTH,
        examples=("list_user_limits --user alice", "list_user_limits --global"),
    ),
    Command(
        "clear_user_limits",
        _G,
        "Takes a user's limits away",
        clear_user_limits,
        usage="<username> <limit_type> | all",
        args=(2, 2),
        banner=_clear_banner,
        arguments={"<limit_type>": f"{' or '.join(LIMITS)}, or all of them"},
        examples=("clear_user_limits alice all",),
    ),
    Command(
        "hash_password",
        "Other",
        "Hashes a password, for add_user --pre-hashed-password",
        hash_password,
        usage="<cleartext_password>",
        args=(0, 1),
        banner=lambda call: f"Will hash password {' '.join(call.args)}",
        examples=("hash_password s3cret",),
    ),
)
