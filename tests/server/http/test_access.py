"""Who may ask: passwords, tags, vhosts; and what is said to those who may not."""

from __future__ import annotations

import pytest

from qlog.server.broker.access.passwords import hash_password
from qlog.server.broker.access.users import User
from tests.server.http.support import Site


def add_user(site: Site, name: str, *tags: str, vhosts: tuple[str, ...] = ()) -> str:
    """A user whose password is the name; returns the login."""
    rights = (".*", ".*", ".*")
    site.bench.broker.users[name] = User(
        name, hash_password(name.encode()), tags, dict.fromkeys(vhosts, rights)
    )
    return f"{name}:{name}"


async def test_without_credentials_the_client_is_asked_for_them(site: Site) -> None:
    reply = await site.ask("GET", "overview", login=None)
    assert (reply.status, reply.body) == (401, b"")
    assert reply.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("login", ["guest:wrong", "nobody:x", "guest"])
async def test_wrong_credentials(site: Site, login: str) -> None:
    reply = await site.ask("GET", "overview", login=login)
    assert reply.status == 401
    assert reply.document == {"error": "not_authorized", "reason": "Not_Authorized"}


async def test_credentials_that_are_no_base64(site: Site) -> None:
    headers = {"authorization": "Basic ###"}
    assert (await site.ask("GET", "overview", login=None, headers=headers)).status == 401
    headers = {"authorization": "Bearer abc"}
    assert (await site.ask("GET", "overview", login=None, headers=headers)).body == b""


@pytest.mark.parametrize(
    ("tag", "path", "text"),
    [
        ("", "overview", "Not management user"),
        ("management", "users", "Not administrator user"),
        ("monitoring", "users", "Not administrator user"),
        ("policymaker", "permissions", "Not administrator user"),
        ("management", "queues/%2F", "User not authorised to access virtual host"),
    ],
)
async def test_tags(site: Site, tag: str, path: str, text: str) -> None:
    login = add_user(site, "u", *([tag] if tag else []))
    reply = await site.ask("GET", path, login=login)
    assert (reply.status, reply.document) == (401, {"error": "not_authorised", "reason": text})


async def test_a_manager_sees_the_vhosts_with_permissions_a_monitor_all(site: Site) -> None:
    site.bench.broker.operations.set_vhost("other")
    manager = add_user(site, "m", "management", vhosts=("other",))
    monitor = add_user(site, "n", "monitoring")
    names = [item["name"] for item in await site.get("vhosts", login=manager)]
    assert names == ["other"]
    names = [item["name"] for item in await site.get("vhosts", login=monitor)]
    assert names == ["/", "other"]


async def test_the_owner_of_the_directory_needs_no_password(site: Site) -> None:
    document = await site.get("whoami", login=None, owner=True)
    assert document == {"name": "(owner)", "tags": ["administrator"], "is_internal_user": True}
    assert await site.get("users", login=None, owner=True)


async def test_no_other_site_is_let_in(site: Site) -> None:
    reply = await site.ask("GET", "overview", headers={"origin": "http://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
