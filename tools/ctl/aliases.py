"""`qlog ctl install-aliases DIR`: rabbitmqctl and its kin, for scripts that call them by name.

Each is a script of three lines, which runs the Python that installed it. A file that is not such a
script is not replaced.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qlog.tools.ctl.command import Status

TOOLS = {
    "rabbitmqctl": "ctl",
    "rabbitmq-diagnostics": "diagnostics",
    "rabbitmq-queues": "queues",
    "rabbitmq-plugins": "plugins",
    "rabbitmqadmin": "admin",
}
_MARK = "# made by `qlog ctl install-aliases`\n"
USAGE = "usage: qlog ctl install-aliases DIR [--data-dir DIR]"


def install(argv: list[str]) -> int:
    """Write the scripts; the exit status. `--data-dir` is kept in them as their default."""
    data_dir: str | None = os.environ.get("QLOG_DATA_DIR")
    args = list(argv)
    if "--data-dir" in args[:-1]:
        at = args.index("--data-dir")
        data_dir = args[at + 1]
        del args[at : at + 2]
    if len(args) != 1 or args[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return Status.USAGE
    directory = Path(args[0])
    where = None if data_dir is None else os.path.abspath(data_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, tool in TOOLS.items():
            _write(directory / name, _script(tool, where))
            print(directory / name)
    except OSError as error:
        print(f"qlog: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return Status.UNAVAILABLE
    return Status.OK


def _script(tool: str, data_dir: str | None) -> str:
    """Python's own path may have blanks, or be too long for the first line: sh runs it."""
    python = sys.executable.replace("'", "'\\''")
    return (
        "#!/bin/sh\n"
        f"{_MARK}"
        f"exec '{python}' -P -c '{_CODE}' {tool} {_quoted(data_dir or '')} \"$@\"\n"
    )


_CODE = (
    "import sys; from qlog.tools.entry import run_tool; "
    "run_tool(sys.argv[1], sys.argv[3:], sys.argv[2] or None)"
)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _write(path: Path, script: str) -> None:
    """Raises FileExistsError for a file that somebody else made."""
    if path.exists() and _MARK not in path.read_text(errors="replace"):
        raise FileExistsError(17, "there is another file, which is not replaced", str(path))
    part = path.with_name(f"{path.name}.part")
    part.write_text(script)
    part.chmod(0o755)
    part.replace(path)
