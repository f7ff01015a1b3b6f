"""Installing an older qlog: once for each commit, from its own sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import against, brokers
from benchmarks.brokers import BrokerFailed


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two commits, whose file `version` differs."""
    root = tmp_path / "sources"
    root.mkdir()
    git(root, "init", "--quiet")
    for version in ("old", "new"):
        (root / "version").write_text(version)
        git(root, "add", ".")
        git(root, "commit", "--quiet", "--message", version)
    git(root, "tag", "first", "HEAD~")
    monkeypatch.setattr(brokers, "ROOT", root)
    return root


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would make virtual environments and fill them, which are not run."""
    commands: list[tuple[str, ...]] = []
    run = against._output

    def output(*command: str) -> str:
        if command[0] == "git":
            return run(*command)
        commands.append(command)
        return ""

    monkeypatch.setattr(against, "_output", output)
    return commands


def test_a_commit_is_installed_once(
    sources: Path, made: list[tuple[str, ...]], tmp_path: Path
) -> None:
    whole = git(sources, "rev-parse", "first")
    found = against.install("first", tmp_path)
    assert found.label == "first"
    assert found.directory == tmp_path / f"qlog-against-{whole[:12]}"
    assert (found.directory / "tree" / "version").read_text() == "old"
    assert found.python == str(found.directory / "venv" / "bin" / "python")
    environment, installed = made
    assert environment[1:3] == ("-m", "venv")
    assert installed[0] == found.python and installed[-1] == str(found.directory / "tree")
    # The libraries are those of today, the product is not.
    versions = (found.directory / "versions.txt").read_text()
    assert "trio==" in versions and "qlog-broker" not in versions
    again = against.install(whole[:10], tmp_path)
    assert (again.directory, again.label, len(made)) == (found.directory, whole[:10], 2)


def test_an_interrupted_installation_is_made_anew(
    sources: Path,
    made: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(against, "distributions", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            against.install("first", tmp_path)
    found = against.install("first", tmp_path)
    assert (found.directory / "tree" / "version").read_text() == "old"
    assert (found.directory / against.COMPLETE).exists()


def test_what_is_no_commit_is_an_error(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed, match="^there is no commit .* to compare with: git rev-parse"):
        against.install("nothing", tmp_path)
