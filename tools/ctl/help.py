"""What the commands say of themselves: the list, one command, and what was meant instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from qlog.tools.ctl.command import Command

PROGRAMS = {
    "ctl": "rabbitmqctl",
    "diagnostics": "rabbitmq-diagnostics",
    "queues": "rabbitmq-queues",
    "plugins": "rabbitmq-plugins",
}
GROUPS = (
    "Help",
    "Nodes",
    "Cluster",
    "Users",
    "Access Control",
    "Monitoring, observability and health checks",
    "Parameters",
    "Policies",
    "Virtual hosts",
    "Queues",
    "Messages",
    "Operations",
    "Feature flags",
    "Configuration and Environment",
    "Definitions",
    "Plugin Management",
    "Other",
    "Deprecated",
)
_GENERAL = """\
General Options

  -n, --node NODE        taken and ignored: there is one node, that of the data directory
  --data-dir DIR         the directory of the broker (default: QLOG_DATA_DIR, then qlog-data)
  --url URL              ask http://USER:PASSWORD@HOST:PORT instead (default: QLOG_URL)
  -p, --vhost VHOST      the virtual host (default: /)
  -q, --quiet            no line that says what is being done
  -s, --silent           the same, and no header of tables
  --no-table-headers     no header of tables
  --formatter FORMAT     table, pretty_table, json, csv or erlang
  -t, --timeout SECONDS  how long to wait for an answer
  -?, -h, --help         this text"""


def usage_line(program: str, command: Command) -> str:
    """How a command is called."""
    rest = f" {command.usage}" if command.usage else ""
    return f"{program} [--node <node>] [--longnames] [--quiet] {command.name}{rest}"


def overview(program: str, commands: Iterable[Command]) -> Iterator[str]:
    """All commands, by groups."""
    listed = list(commands)
    width = max(len(command.name) for command in listed) + 2
    yield from ("", "Usage", "")
    yield (
        f"{program} [--node <node>] [--timeout <timeout>] [--longnames] [--quiet] "
        "<command> [<command options>]"
    )
    yield from ("", "Available commands:", "")
    for group in GROUPS:
        members = [command for command in listed if command.group == group]
        if not members:
            continue
        yield from (f"{group}:", "")
        for command in members:
            yield f"   {command.name:<{width}}{command.about}"
        yield ""
    yield f"Use '{program} help <command>' to learn more about a specific command"


def of_command(program: str, command: Command) -> Iterator[str]:
    """One command: usage, what it does, its arguments, examples, options."""
    yield from ("", "Usage", "", usage_line(program, command), "", f"{command.about}.")
    described: list[tuple[str, str]] = [(name, text) for name, text in command.arguments.items()]
    if command.columns:
        described.append(("<column>", f"any of {', '.join(command.columns)}"))
    for option in command.options:
        if option.about:
            flag = "--" + option.name.replace("_", "-")
            described.append((", ".join((*option.aliases, flag)), option.about))
    if described:
        yield from ("", "Arguments and Options", "")
        for name, text in described:
            yield f"  {name}"
            yield f"      {text}"
    if command.examples:
        yield from ("", "Examples", "")
        yield from (f"  {program} {example}" for example in command.examples)
    yield from ("", _GENERAL, "")


def not_found(program: str, name: str, commands: Mapping[str, Command]) -> Iterator[str]:
    """No command has this name: the one that was probably meant, or all of them."""
    yield ""
    yield f"Command '{name}' not found. "
    near = nearest(name, commands)
    if near:
        yield f"Did you mean '{near}'? "
        return
    yield from overview(program, commands.values())


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, if any is much like it."""
    import difflib

    found: Sequence[str] = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return found[0] if found else None
