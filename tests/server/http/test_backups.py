"""Backups over the API: only the owner of the directory may have them made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.server.http.support import Site


async def test_a_backup_is_begun_and_looked_at(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    assert (await site.ask("GET", "qlog/backups", owner=True)).document == {"state": "none"}
    begun = await site.ask("POST", "qlog/backups", {"directory": str(target)}, owner=True)
    assert begun.status == 202
    assert begun.document == {"state": "running", "directory": str(target), "waits": False}
    again = await site.ask("POST", "qlog/backups", {"directory": str(target)}, owner=True)
    assert again.status == 400 and "is under way" in again.reason
    for _ in range(10):
        site.bench.disk()
        site.bench.pass_ms(200)
    state = (await site.ask("GET", "qlog/backups", owner=True)).document
    assert state["state"] == "made" and state["files"] == state["files_copied"] > 0


async def test_it_is_said_that_a_backup_waits_for_the_disk(site: Site, tmp_path: Path) -> None:
    """On a full disk it waits for ever, like the confirms of what came before it."""

    async def look() -> dict[str, Any]:
        site.bench.pass_ms(200)
        state: dict[str, Any] = (await site.ask("GET", "qlog/backups", owner=True)).document
        return state

    target = {"directory": str(tmp_path / "backup")}
    peer = site.peer()
    peer.declare("q")
    peer.publish(1, "q", b"body")
    await site.ask("POST", "qlog/backups", target, owner=True)
    states = [await look() for _ in range(5)]
    assert [state["waits"] for state in states][-3:] == [True] * 3
    site.bench.disk()
    assert not (await look()).get("waits")


async def test_a_place_that_cannot_be_written_to_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "backup"
    await site.ask("POST", "qlog/backups", {"directory": str(target)}, owner=True)
    for _ in range(3):
        site.bench.disk()
        site.bench.pass_ms(200)
    state = (await site.ask("GET", "qlog/backups", owner=True)).document
    assert state["state"] == "failed" and state["reason"] == f"{target}/log: Not a directory"


async def test_what_fails_is_said(site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    await site.ask("POST", "qlog/backups", {"directory": str(tmp_path / "mine")}, owner=True)
    for _ in range(3):
        site.bench.disk()
        site.bench.pass_ms(200)
    state = (await site.ask("GET", "qlog/backups", owner=True)).document
    assert state["state"] == "failed" and "neither empty nor a backup" in state["reason"]


async def test_bad_requests(site: Site) -> None:
    for document in (
        {},
        {"directory": 1},
        {"directory": "relative"},
        {"directory": "/b\0"},
        {"directory": "/b", "bytes_per_s": "fast"},
        {"directory": "/b", "bytes_per_s": True},
        {"directory": "/b", "bytes_per_s": 5},
    ):
        reply = await site.ask("POST", "qlog/backups", document, owner=True)
        assert reply.status == 400, document


async def test_an_administrator_is_not_the_owner(site: Site, tmp_path: Path) -> None:
    for method, document in (("GET", None), ("POST", {"directory": str(tmp_path / "b")})):
        reply = await site.ask(method, "qlog/backups", document)
        assert reply.status == 401 and not (tmp_path / "b").exists()
