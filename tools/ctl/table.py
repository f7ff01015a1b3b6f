"""The table of all commands, and which of them each tool has."""

from __future__ import annotations

from qlog.tools.ctl.command import Command
from qlog.tools.ctl.commands import (
    access,
    backups,
    definitions,
    diagnostics,
    help,
    messages,
    migrate,
    node,
    objects,
    plugins,
    policies,
    tuning,
    users,
    vhosts,
)

COMMANDS = (
    *help.COMMANDS,
    *node.COMMANDS,
    *tuning.COMMANDS,
    *users.COMMANDS,
    *access.COMMANDS,
    *diagnostics.COMMANDS,
    *objects.COMMANDS,
    *policies.COMMANDS,
    *vhosts.COMMANDS,
    *messages.COMMANDS,
    *definitions.COMMANDS,
    *backups.COMMANDS,
    *migrate.COMMANDS,
    *plugins.COMMANDS,
)


def commands_of(tool: str) -> dict[str, Command]:
    """The commands of a tool (`ctl`, `diagnostics`, `queues`, `plugins`) by their names.

    `qlog ctl` has those of the others, too, where the name is free.
    """
    found = {command.name: command for command in COMMANDS if tool in command.tools}
    if tool == "ctl":
        for command in COMMANDS:
            if "plugins" not in command.tools:
                found.setdefault(command.name, command)
    return found
