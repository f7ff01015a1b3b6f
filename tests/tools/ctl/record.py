"""Run all forms against RabbitMQ 4.0, and write down what it answered.

    python -m tests.tools.ctl.record URL GROUPS COMMAND...   (from the root of the repository)

GROUPS are `all` or names joined by commas. URL is that of AMQP, up to the vhost (`amqp://guest:guest@127.0.0.1:5672/`); COMMAND runs a tool,
whose name (`ctl`, `diagnostics` …) and arguments it gets, and `-n NODE` if it needs that itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.tools.ctl.forms import GROUPS, run_group

RECORDED = Path(__file__).with_name("recorded.json")
SECONDS_MAX = 900.0  # a benchmark may stop everything else for a while
_NODE_OPTION = re.compile(r"(?<=^\t)-n (\S+) ", re.MULTILINE)
_NOISE = re.compile(r"^ *\.\.\.killed\.\n|^Session terminated.*\n", re.MULTILINE)


def main(url: str, groups: list[str], command: list[str]) -> None:
    """See the head of this file."""
    node = ""

    def run(tool: str, words: list[str]) -> tuple[int, str, str]:
        nonlocal node
        done = subprocess.run(
            [*command, tool, *words],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        out, err = done.stdout, _NOISE.sub("", done.stderr)
        if found := _NODE_OPTION.search(err):
            node = found[1]
            err = _NODE_OPTION.sub("", err)
        for name in filter(None, (node, "r4@localhost")):
            out, err = out.replace(name, "NODE"), err.replace(name, "NODE")
        return done.returncode, out, err

    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for group in groups:
        recorded[group] = [
            {"form": form, "status": status, "stdout": out, "stderr": err}
            for form, status, out, err in run_group(group, run, url)
        ]
        RECORDED.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    chosen = list(GROUPS) if sys.argv[2] == "all" else sys.argv[2].split(",")
    main(sys.argv[1], chosen, sys.argv[3:])
