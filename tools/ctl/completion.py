"""Shell completion: a script that is made of the table of commands, so that a tab starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qlog.tools.ctl.command import Command
from qlog.tools.ctl.parse import EVERYWHERE

SHELLS = ("bash", "zsh")
_TOP = "serve inspect ctl top help"
# Options of no use to people.
_HIDDEN = frozenset(("erlang_cookie", "script_name", "printer", "file", "dry_run", "longnames"))


def script(shell: str, commands: Mapping[str, Command]) -> str:
    """The script for a shell; zsh runs that of bash."""
    general = [option for option in EVERYWHERE if option.name not in _HIDDEN]
    cases = [
        f'    {command.name}) options="{_flags(option.name for option in command.options)} '
        f'{" ".join(command.columns)}" ;;'
        for command in commands.values()
        if command.options or command.columns
    ]
    lines = [
        "# made by `qlog ctl completion`",
        *(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []),
        "_qlog() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" name="" options="" at=1 i',
        f'  local commands="{" ".join(sorted(commands))}"',
        f'  local general="{_flags(option.name for option in general)}"',
        '  if [ "${COMP_WORDS[0]##*/}" = qlog ]; then',
        '    if [ "$COMP_CWORD" -eq 1 ]; then',
        f'      COMPREPLY=($(compgen -W "{_TOP}" -- "$word")); return',
        "    fi",
        '    case "${COMP_WORDS[1]}" in ctl|help) at=2 ;; *) COMPREPLY=(); return ;; esac',
        "  fi",
        "  for ((i = at; i < COMP_CWORD; i++)); do",
        '    case " $commands " in *" ${COMP_WORDS[i]} "*) name="${COMP_WORDS[i]}"; break ;; esac',
        "  done",
        '  case "$name" in',
        '    "") options="$commands" ;;',
        '    help) options="$commands" ;;',
        *cases,
        "  esac",
        '  COMPREPLY=($(compgen -W "$options $general" -- "$word"))',
        "}",
        "complete -o default -F _qlog qlog rabbitmqctl rabbitmq-diagnostics rabbitmq-queues",
    ]
    return "\n".join(lines)


def _flags(names: Iterable[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')}" for name in names)
