"""An older qlog, installed from a commit of this repository, to run beside today's.

The sources are a git worktree in a temporary directory, beside them a virtual environment of their
own with the libraries in the versions that today's qlog uses, so that a ratio speaks of the sources
alone. Both stay there and are used again. Knows git and pip.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from benchmarks import brokers
from benchmarks.brokers import BrokerFailed, Installation

# The distribution that is installed from the commit rather than in today's version.
OWN_DISTRIBUTION = "qlog-broker"
# Made last: an installation without it was interrupted, and is made anew.
COMPLETE = "complete"


def install(commit: str, parent: Path | None = None) -> Installation:
    """The qlog of a commit, ready to be started; it is made when it is not there yet.

    Args:
        commit: what git calls it; tables call it the same.
        parent: where it is made; None for the directory of temporary files.

    Raises:
        BrokerFailed: there is no such commit, or it cannot be installed.
    """
    try:
        whole = _output("git", "rev-parse", "--verify", f"{commit}^{{commit}}").strip()
    except BrokerFailed as error:
        raise BrokerFailed(f"there is no commit '{commit}' to compare with: {error}") from error
    home = (parent or Path(tempfile.gettempdir())) / f"qlog-against-{whole[:12]}"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        # Two sessions may want the same commit at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / COMPLETE).exists():
            _make(whole, home)
            (home / COMPLETE).touch()
    return Installation(commit, str(home / "venv" / "bin" / "python"), home)


def _make(commit: str, home: Path) -> None:
    tree, environment = home / "tree", home / "venv"
    shutil.rmtree(tree, ignore_errors=True)
    # Git remembers worktrees whose directories are gone.
    _output("git", "worktree", "prune")
    _output("git", "worktree", "add", "--detach", str(tree), commit)
    _output(sys.executable, "-m", "venv", "--clear", str(environment))
    versions = home / "versions.txt"
    versions.write_text(
        "".join(
            f"{one.name}=={one.version}\n"
            for one in distributions()
            if one.name != OWN_DISTRIBUTION
        )
    )
    pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet")
    _output(*pip, "--disable-pip-version-check", "--constraint", str(versions), str(tree))


def _output(*command: str) -> str:
    """What a command prints; BrokerFailed with its errors when it fails."""
    done = subprocess.run(command, cwd=brokers.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        shown = " ".join(command)
        raise BrokerFailed(f"{shown} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
