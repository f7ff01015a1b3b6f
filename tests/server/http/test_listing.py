"""Listings: pages, filters, order, columns; and that a long one stalls nobody."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from qlog.server.http import pace
from qlog.server.http.answers import Listing
from qlog.server.http.listing import answer_listing
from tests.server.http.support import Site


async def names(site: Site, query: str) -> list[str]:
    document = await site.get(f"queues?{query}")
    items = document if isinstance(document, list) else document["items"]
    return [item["name"] for item in items]


@pytest.fixture
def queues(site: Site) -> Site:
    """Three queues, with 2, 0 and 1 messages."""
    peer = site.peer()
    for name, count in (("b", 2), ("a", 0), ("C", 1)):
        peer.declare(name)
        peer.publish(1, name, *[b"x"] * count)
    return site


async def test_a_page(queues: Site) -> None:
    document = await queues.get("queues?page=1&page_size=2&columns=name")
    assert document == {
        "filtered_count": 3,
        "item_count": 2,
        "items": [{"name": "C"}, {"name": "a"}],
        "page": 1,
        "page_count": 2,
        "page_size": 2,
        "total_count": 3,
    }
    assert (await queues.get("queues?page=2&page_size=2"))["item_count"] == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("page=1&name=B", ["b"]),
        ("page=1&name=%5E%5Bab%5D&use_regex=true", ["a", "b"]),
        ("page=1&name=a.c&use_regex=false", []),
        ("sort=messages", ["a", "C", "b"]),
        ("sort=messages&sort_reverse=true", ["b", "C", "a"]),
        ("sort=message_stats.publish&page=1", ["a", "C", "b"]),
        ("sort=arguments&page=1", ["C", "a", "b"]),
        ("sort=no.such.thing", ["C", "a", "b"]),
        ("page_size=2", ["C", "a", "b"]),
    ],
)
async def test_filter_and_order(queues: Site, query: str, found: list[str]) -> None:
    assert await names(queues, query) == found


@pytest.mark.parametrize(
    ("query", "error", "reason"),
    [
        ("page=2", "page_out_of_range", "Page out of range, page: 2 page size: 100, len: 3"),
        (
            "page=0",
            "invalid_pagination_parameters",
            "Invalid pagination parameters: page number 0, page size undefined",
        ),
        (
            "page=1&page_size=501",
            "invalid_pagination_parameters",
            "Invalid pagination parameters: page number 1, page size 501",
        ),
        ("page=x", "bad_request", "Pagination parameters are invalid"),
        ("page=1&page_size=", "bad_request", "Pagination parameters are invalid"),
        ("page=1&name=%28&use_regex=true", "bad_request", "Pagination parameters are invalid"),
    ],
)
async def test_what_is_no_page(queues: Site, query: str, error: str, reason: str) -> None:
    reply = await queues.ask("GET", f"queues?{query}")
    assert (reply.status, reply.document) == (400, {"error": error, "reason": reason})


async def test_columns_reach_into_objects(queues: Site) -> None:
    columns = "name,arguments.x-queue-type,no.such"
    (item,) = (await queues.get(f"queues?page=1&name=b&columns={columns}"))["items"]
    assert item == {"name": "b", "arguments": {"x-queue-type": "classic"}}
    one = await queues.get("queues/%2F/b?columns=name,messages")
    assert one == {"name": "b", "messages": 2}


async def test_a_pattern_that_would_backtrack_for_ever_is_given_up(site: Site) -> None:
    site.peer().declare("a" * 200)
    began_s = time.monotonic()
    reply = await site.ask("GET", "queues?page=1&use_regex=true&name=%28a%7Caa%29%2Bb")
    assert reply.status == 400
    assert time.monotonic() - began_s < 20


class Tally:
    """Counts the turns of another task."""

    def __init__(self) -> None:
        self.turns = 0

    async def run(self) -> None:
        while True:
            self.turns += 1
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("query", [{}, {"page": "50"}, {"sort": "number"}])
async def test_a_long_listing_lets_others_have_their_turn(
    query: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand objects, on a machine where one of them takes a slice."""
    monkeypatch.setattr(pace, "SLICE_S", 0.0)

    def view(number: int) -> dict[str, Any]:
        return {"number": -number, "name": str(number), "text": "x" * 200}

    tally = Tally()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tally.run)
        listing = Listing(range(10_000), view, name=str, paged=True)
        answer = await answer_listing(listing, query)
        if not isinstance(answer.body, bytes):
            async for _ in answer.body:
                pass
        nursery.cancel_scope.cancel()
    assert tally.turns > 10_000
