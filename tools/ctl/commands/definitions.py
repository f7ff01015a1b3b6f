"""Definitions to a file, and from one."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from qlog.tools.ctl.command import (
    Call,
    Command,
    Failure,
    Message,
    Option,
    Options,
    Result,
    Status,
    bad_argument,
)
from qlog.tools.ctl.values import to_json

STDOUT = "-"


def _check_format(args: list[str], options: Options) -> None:
    wanted = options.get("format", "json")
    if wanted.lower() != "json":
        raise bad_argument(f"only JSON is supported, not {wanted}")


def _check_file(args: list[str], options: Options) -> None:
    _check_format(args, options)
    if args and args[0] != STDOUT and not os.path.isfile(args[0]):
        raise bad_argument(f"File {args[0]} does not exist")


def export_definitions(call: Call) -> Result:
    """Users, vhosts, permissions, policies, queues, exchanges, bindings; no messages."""
    document = call.get("definitions")
    if call.options.get("reset_passwords"):
        _reset_passwords(document)
    text = to_json(document)
    if call.args[0] == STDOUT:
        return Message(text)
    path = call.args[0]
    try:
        # It has the hashes of passwords: for the owner alone, and whole or not there.
        part = f"{path}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}", Status.UNAVAILABLE) from None
    return None


def _reset_passwords(document: dict[str, Any]) -> None:
    """Users whom no password lets in, as any version of RabbitMQ takes them."""
    for user in document.get("users", ()):
        user["password_hash"] = ""
        user["hashing_algorithm"] = "rabbit_password_hashing_sha256"


def _export_banner(call: Call) -> str:
    if call.args[0] == STDOUT:
        return "Exporting definitions in JSON to standard output ..."
    return f'Exporting definitions in JSON to a file at "{call.args[0]}" ...'


def import_definitions(call: Call) -> Message:
    """Make what a file has; what is there already stays."""
    path = call.args[0] if call.args else STDOUT
    try:
        if path == STDOUT:
            document = json.load(sys.stdin)
        else:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
    except (ValueError, RecursionError):
        raise Failure("Failed to parse JSON: the document is not valid", Status.DATA) from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}", Status.UNAVAILABLE) from None
    call.ask("POST", "definitions", body=document)
    return Message("Successfully imported definitions.")


def _import_banner(call: Call) -> str:
    if not call.args or call.args[0] == STDOUT:
        return "Importing definitions in JSON from standard input ..."
    return f'Importing definitions in JSON from a file at "{call.args[0]}" ...'


_G = "Definitions"
_FORMAT = Option("format", about="json")

COMMANDS = (
    Command(
        "export_definitions",
        _G,
        "Writes users, virtual hosts, policies, queues, exchanges and bindings to a file",
        export_definitions,
        usage='<file_path | "-"> [--format <json | erlang>] [--timeout <timeout>]',
        args=(1, 1),
        banner=_export_banner,
        options=(
            _FORMAT,
            Option(
                "reset_passwords",
                bool,
                about="without hashes of passwords: a file that RabbitMQ takes, too; no password "
                "lets its users in",
            ),
        ),
        check=_check_format,
        examples=("export_definitions definitions.json", "-q export_definitions - | jq .queues"),
    ),
    Command(
        "import_definitions",
        _G,
        "Makes what such a file has; what is there stays",
        import_definitions,
        usage='<file_path | "-"> [--format <json | erlang>] [--skip-if-unchanged] '
        "[--timeout <timeout>]",
        args=(0, 1),
        banner=_import_banner,
        options=(_FORMAT, Option("skip_if_unchanged", bool)),
        check=_check_file,
        examples=("import_definitions definitions.json",),
    ),
)
