"""Shell completion: a script that is made of the table of commands, so that a tab starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qlog.tools.ctl.command import Command
from qlog.tools.ctl.parse import EVERYWHERE

SHELLS = ("bash", "zsh")
_TOP = "serve restore inspect ctl top help"
# Options of no use to people.
_HIDDEN = frozenset(("erlang_cookie", "script_name", "printer", "file", "dry_run", "longnames"))


def script(
    shell: str, commands: Mapping[str, Command], others: Mapping[tuple[str, ...], Iterable[str]]
) -> str:
    """The script for a shell; zsh runs that of bash.

    `commands` are those of `qlog ctl`. `others` says what may follow the words of all others: the
    options of ("inspect", "queues"), the commands of ("inspect",).
    """
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
        '    case "${COMP_WORDS[1]}" in',
        "      ctl|help) at=2 ;;",
        "      *)",
        '        name="${COMP_WORDS[1]}"; [ "$COMP_CWORD" -gt 2 ] && name="$name ${COMP_WORDS[2]}"',
        '        case "$name" in',
        *(
            f'          {_pattern(words)}) options="{" ".join(found)}" ;;'
            for words, found in _longest_first(others)
        ),
        "        esac",
        '        COMPREPLY=($(compgen -W "$options" -- "$word")); return ;;',
        "    esac",
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


def _longest_first(
    others: Mapping[tuple[str, ...], Iterable[str]],
) -> list[tuple[tuple[str, ...], Iterable[str]]]:
    return sorted(others.items(), key=lambda item: -len(item[0]))


def _pattern(words: tuple[str, ...]) -> str:
    """What the line begins with; behind a single command may stand anything."""
    return f'"{words[0]} {words[1]}"' if len(words) > 1 else f'{words[0]}|"{words[0]} "*'


def _flags(names: Iterable[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')}" for name in names)
