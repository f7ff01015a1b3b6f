"""Rates and their history: what the counters say, by a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.broker import sampling
from tests.server.broker.support import make
from tests.server.http.support import Site

ROUND_MS = round(sampling.INTERVAL_S * 1000)


@pytest.fixture
def sampled(site: Site) -> Site:
    """A broker that is sampled."""
    site.bench.broker.operations.sampler.start()
    return site


async def test_rates_of_a_queue_its_exchange_and_its_channel(sampled: Site) -> None:
    site, peer = sampled, sampled.peer()
    peer.declare("q")
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    site.bench.pass_ms(ROUND_MS)
    peer.publish(1, "q", *[b"x"] * 10)
    site.bench.disk()
    peer.publish(1, "nobody", b"lost")
    site.bench.pass_ms(ROUND_MS)
    queue = await site.get("queues/%2F/q")
    assert queue["message_stats"] == {"publish": 10, "publish_details": {"rate": 2.0}}
    assert queue["messages_details"] == {"rate": 2.0}
    (channel,) = await site.get("channels")
    assert channel["message_stats"]["publish_details"] == {"rate": 2.2}
    assert channel["message_stats"]["confirm"] == 11
    assert channel["message_stats"]["drop_unroutable"] == 1
    exchange = await site.get("exchanges/%2F/amq.default")
    assert exchange["message_stats"]["publish_in"] == 11
    assert exchange["message_stats"]["publish_out"] == 10
    assert exchange["message_stats"]["publish_in_details"] == {"rate": 2.2}
    (connection,) = await site.get("connections")
    overview = await site.get("overview")
    assert overview["message_stats"]["publish_details"] == {"rate": 2.2}
    assert overview["queue_totals"]["messages"] == 10
    assert overview["churn_rates"]["queue_created"] == 1
    vhost = await site.get("vhosts/%2F")
    assert vhost["messages"] == 10
    assert vhost["message_stats"]["publish_details"] == {"rate": 2.2}
    assert connection["recv_oct_details"] == {"rate": 0.0}  # a bench has no socket

    site.bench.pass_ms(ROUND_MS)
    queue = await site.get("queues/%2F/q")
    assert queue["message_stats"]["publish_details"] == {"rate": 0.0}


async def test_what_is_idle_takes_no_memory_and_has_a_history_all_the_same(site: Site) -> None:
    peer = site.peer()
    site.bench.now_ms = 1_800_000_000_000
    site.bench.broker.operations.sampler.start()
    peer.declare("q")
    peer.declare("busy")
    peer.publish(1, "busy", b"x")
    site.bench.pass_ms(ROUND_MS)
    sampler, queues = site.bench.broker.operations.sampler, site.bench.broker.vhosts["/"].queues
    assert [sampler.counted(queues[name], ["publish"]) for name in ("q", "busy")] == [
        {},
        {"publish": 1},
    ]
    idle = await site.get("queues/%2F/q?lengths_age=10&lengths_incr=5")
    assert [each["sample"] for each in idle["messages_details"]["samples"]] == [0, 0, 0]
    peer.publish(1, "q", *[b"x"] * 5)
    site.bench.pass_ms(ROUND_MS)
    queue = await site.get("queues/%2F/q?lengths_age=10&lengths_incr=5")
    assert queue["messages_details"]["rate"] == 1.0
    assert [each["sample"] for each in queue["messages_details"]["samples"]] == [5, 0, 0]


@pytest.mark.parametrize("started_ms", [0, 1, 2500, 4999])
async def test_a_rate_and_its_history_are_of_the_same_samples(site: Site, started_ms: int) -> None:
    """Whenever the rounds are; hop asks for a queue's average as soon as there is a rate."""
    site.bench.now_ms = 1_800_000_000_000 + started_ms
    site.bench.broker.operations.sampler.start()
    peer = site.peer()
    peer.declare("q")
    site.bench.pass_ms(ROUND_MS)
    peer.publish(1, "q", *[b"x"] * 10)
    site.bench.pass_ms(ROUND_MS)
    queue = await site.get("queues/%2F/q?lengths_age=10&lengths_incr=5")
    details = queue["messages_details"]
    assert details["rate"] == 2.0
    assert [each["sample"] for each in details["samples"]] == [10, 0, 0]
    assert details["samples"][0]["timestamp"] == 1_800_000_010_000


async def test_deliveries_are_counted_by_how_they_are_made(sampled: Site) -> None:
    site, peer = sampled, sampled.peer()
    peer.declare("q")
    peer.publish(1, "q", *[b"x"] * 10)
    peer.send(1, make(spec.BasicGet, queue="q", no_ack=True))
    peer.send(1, make(spec.BasicGet, queue="q"))
    peer.send(1, make(spec.BasicNack, delivery_tag=2, requeue=True))
    peer.send(1, make(spec.BasicQos, prefetch_count=3))
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    peer.send(1, make(spec.BasicAck, delivery_tag=4, multiple=True))
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    peer.send(2, make(spec.BasicConsume, queue="q", no_ack=True))
    peer.send(2, make(spec.BasicGet, queue="q"))
    expected = {
        "deliver": 5,
        "deliver_no_ack": 4,
        "get": 1,
        "get_no_ack": 1,
        "get_empty": 1,
        "deliver_get": 11,
        "redeliver": 1,
        "ack": 2,
    }
    queue = await site.get("queues/%2F/q?columns=message_stats")
    counted = {name: queue["message_stats"][name] for name in expected}
    assert counted == expected
    overview = await site.get("overview")
    assert {name: overview["message_stats"][name] for name in expected} == expected
    by_channel = [item["message_stats"] for item in await site.get("channels")]
    for name, count in expected.items():
        assert sum(each.get(name, 0) for each in by_channel) == count, name


async def test_history_for_a_chart(site: Site) -> None:
    peer = site.peer()
    site.bench.now_ms = 1_800_000_000_000
    site.bench.broker.operations.sampler.start()
    peer.declare("q")
    site.bench.pass_ms(ROUND_MS)
    for _ in range(3):
        peer.publish(1, "q", *[b"x"] * 5)
        site.bench.pass_ms(ROUND_MS)
    query = "lengths_age=20&lengths_incr=5&msg_rates_age=20&msg_rates_incr=5"
    queue = await site.get(f"queues/%2F/q?{query}")
    details = queue["messages_details"]
    assert details["rate"] == 1.0
    assert [each["sample"] for each in details["samples"]] == [15, 10, 5, 0, 0]
    assert details["samples"][0]["timestamp"] == 1_800_000_020_000
    assert details["avg_rate"] == 15 / 20
    assert details["avg"] == 30 / 5
    assert queue["message_stats"]["publish_details"]["samples"] == details["samples"]


async def test_each_item_of_a_listing_has_a_history(site: Site) -> None:
    site.bench.now_ms = 1_800_000_000_000
    site.bench.broker.operations.sampler.start()
    peer = site.peer()
    peer.declare("q")
    site.bench.pass_ms(ROUND_MS)
    peer.publish(1, "q", *[b"x"] * 5)
    site.bench.pass_ms(ROUND_MS)
    query = "&".join(
        f"{kind}_age=10&{kind}_incr=5" for kind in ("lengths", "msg_rates", "data_rates")
    )

    async def listed(path: str, *fields: str) -> None:
        """Look at the list and at one page of it; the first item has these numbers."""
        (item, *_) = await site.get(f"{path}?{query}")
        paged = await site.get(f"{path}?{query}&page=1&sort=name")
        (of_page, *_) = paged["items"] if isinstance(paged, dict) else paged
        for one in (item, of_page):
            for field in fields:
                details = one["message_stats"] if field.startswith("publish") else one
                samples = details[f"{field}_details"]["samples"]
                assert len(samples) == 3, (path, field)
                expected = [0, 0, 0] if "oct" in field else [5, 0, 0]
                assert [each["sample"] for each in samples] == expected, (path, field)

    await listed("queues", "messages", "publish")
    await listed("queues/%2F", "messages_ready", "publish")
    await listed("exchanges", "publish_in")
    await listed("exchanges/%2F", "publish_out")
    await listed("connections", "recv_oct")
    await listed("vhosts/%2F/connections", "send_oct")
    await listed("channels", "publish")
    await listed("vhosts/%2F/channels", "publish")
    await listed("vhosts", "messages", "publish", "recv_oct")


async def test_what_is_new_has_a_history_too(site: Site) -> None:
    """A chart is asked for before the first round that looks at the queue."""
    site.bench.now_ms = 1_800_000_000_000
    site.bench.broker.operations.sampler.start()
    peer = site.peer()
    peer.declare("q")
    peer.publish(1, "q", b"x")
    query = "lengths_age=10&lengths_incr=5&msg_rates_age=5&msg_rates_incr=5"
    queue = await site.get(f"queues/%2F/q?{query}")
    assert queue["messages"] == 1
    assert queue["messages_details"] == {
        "rate": 0.0,
        "samples": [{"sample": 0, "timestamp": 1_800_000_000_000 - 5000 * ago} for ago in range(3)],
        "avg_rate": 0.0,
        "avg": 0.0,
    }
    assert len(queue["message_stats"]["publish_details"]["samples"]) == 2


@pytest.mark.parametrize(
    "query",
    [
        "lengths_age=x&lengths_incr=1",
        "lengths_age=10&lengths_incr=0",
        "msg_rates_age=99999&msg_rates_incr=5",
    ],
)
async def test_a_history_that_is_none(site: Site, query: str) -> None:
    site.peer().declare("q")
    assert (await site.ask("GET", f"queues/%2F/q?{query}")).status == 400


async def test_samples_are_bounded(sampled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is busy: what a rate needs is kept."""
    monkeypatch.setattr(sampling, "SAMPLES_MAX", 40)
    site, peer = sampled, sampled.peer()
    names = [f"q{number}" for number in range(20)]
    for name in names:
        peer.declare(name)
    for _ in range(10):
        for name in names:
            peer.publish(1, name, b"x")
        site.bench.pass_ms(ROUND_MS)
    sampler = site.bench.broker.operations.sampler
    assert sampler._count <= 2 * (len(sampler._series) + 1)
    queue: Any = await site.get("queues/%2F/q3")
    assert queue["message_stats"]["publish_details"] == {"rate": 0.2}
    for name in names:
        peer.ask(1, make(spec.QueueDelete, queue=name), spec.QueueDeleteOk)
    site.bench.pass_ms(ROUND_MS)
    assert not [key for key in sampler._series if hasattr(key, "declared")]


async def test_nothing_is_sampled_before_somebody_asks(site: Site) -> None:
    site.bench.pass_ms(3 * ROUND_MS)
    assert not site.bench.broker.operations.sampler._series
