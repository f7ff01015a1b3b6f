"""Metrics, as prometheus-client's parser reads them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qlog.server.amqp import spec
from qlog.server.http.management import metrics
from qlog.server.http.metrics.text import label_text
from tests.server.broker.support import make
from tests.server.http.support import Site

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(site: Site, path: str = "/metrics") -> Samples:
    """What a scrape gives; each sample once, each metric with its type and help."""
    api = metrics(site.bench.broker.operations, site.context, site.wake)
    site.api, before = api, site.api
    try:
        reply = await site.ask("GET", path, login=None)
    finally:
        site.api = before
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    named = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(named) == len(set(named)), "a metric comes twice"
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


@pytest.fixture
def busy(site: Site) -> Site:
    """A queue of each type with messages, a consumer, and what was lost."""
    peer = site.peer()
    peer.declare("q")
    peer.declare("qq", arguments={"x-queue-type": "quorum"})
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    peer.publish(1, "q", *[b"x"] * 3)
    peer.publish(1, "nobody", b"lost")
    site.bench.disk()
    peer.send(1, make(spec.BasicQos, prefetch_count=2))
    peer.send(1, make(spec.BasicConsume, queue="q"))
    peer.send(1, make(spec.BasicAck, delivery_tag=1))
    return site


async def test_aggregated(busy: Site) -> None:
    samples = await scrape(busy)
    amqp = {"protocol": "amqp091"}
    classic = {**amqp, "queue_type": "rabbit_classic_queue"}
    quorum = {**amqp, "queue_type": "rabbit_quorum_queue"}
    for name, expected in {
        "rabbitmq_connections": 1,
        "rabbitmq_channels": 1,
        "rabbitmq_consumers": 1,
        "rabbitmq_queues": 2,
        "rabbitmq_queue_messages_ready": 0,
        "rabbitmq_queue_messages_unacked": 2,
        "rabbitmq_queue_messages": 2,
        "rabbitmq_queues_created_total": 2,
        "rabbitmq_connections_opened_total": 1,
        "rabbitmq_process_max_fds": 1024,
        "rabbitmq_resident_memory_limit_bytes": 1000,
        "rabbitmq_disk_space_available_bytes": 5000,
        "rabbitmq_alarms_memory_used_watermark": 0,
    }.items():
        assert value(samples, name) == expected, name
    for name, expected in {
        "publishers": 1,
        "consumers": 1,
        "messages_received_total": 4,
        "messages_received_confirm_total": 4,
        "messages_routed_total": 3,
        "messages_confirmed_total": 4,
        "messages_unroutable_dropped_total": 1,
        "messages_unroutable_returned_total": 0,
    }.items():
        assert value(samples, f"rabbitmq_global_{name}", **amqp) == expected, name
    delivered = "rabbitmq_global_messages_delivered_total"
    assert value(samples, delivered, **classic) == 3
    assert value(samples, delivered, **quorum) == 0
    assert value(samples, "rabbitmq_global_messages_acknowledged_total", **classic) == 1
    identity = [key for key in samples if key[0] == "rabbitmq_identity_info"]
    assert dict(identity[0][1]).keys() == {"rabbitmq_node", "rabbitmq_cluster"}


async def test_what_only_qlog_has(busy: Site) -> None:
    samples = await scrape(busy)
    assert value(samples, "qlog_commit_messages_sum") == 3
    commits = value(samples, "qlog_commit_seconds_count")
    assert commits >= 1
    assert value(samples, "qlog_fsync_seconds_bucket", le="+Inf") == commits
    assert value(samples, "qlog_segments") == 1
    assert value(samples, "qlog_segment_bytes") > 0


async def test_by_object(busy: Site) -> None:
    samples = await scrape(busy, "/metrics/per-object")
    assert value(samples, "rabbitmq_queue_messages_unacked", vhost="/", queue="q") == 2
    assert value(samples, "rabbitmq_queue_messages_acked_total", vhost="/", queue="q") == 1
    assert value(samples, "rabbitmq_queue_consumers", vhost="/", queue="q") == 1
    (channel,) = [key for key in samples if key[0] == "rabbitmq_channel_consumers"]
    assert dict(channel[1])["channel"].endswith("(1)")


async def test_by_family_and_vhost(busy: Site) -> None:
    busy.bench.broker.operations.set_vhost("other")
    busy.bench.disk()
    bare = await scrape(busy, "/metrics/detailed")
    assert {name for name, _ in bare} == {"rabbitmq_build_info", "rabbitmq_identity_info"}
    families = "family=queue_coarse_metrics&family=queue_metrics&family=queue_consumer_count"
    samples = await scrape(busy, f"/metrics/detailed?{families}&family=vhost_status&vhost=%2F")
    assert value(samples, "rabbitmq_detailed_queue_messages", vhost="/", queue="q") == 2
    assert value(samples, "rabbitmq_detailed_queue_consumers", vhost="/", queue="qq") == 0
    assert value(samples, "rabbitmq_cluster_vhost_status", vhost="/") == 1
    assert ("rabbitmq_cluster_vhost_status", (("vhost", "other"),)) not in samples
    everything = "&".join(
        f"family={name}"
        for name in (
            "channel_exchange_metrics",
            "channel_metrics",
            "channel_queue_metrics",
            "connection_churn_metrics",
            "connection_coarse_metrics",
            "connection_metrics",
            "exchange_bindings",
            "exchange_names",
            "node_coarse_metrics",
            "queue_delivery_metrics",
        )
    )
    samples = await scrape(busy, f"/metrics/detailed?{everything}")
    assert value(
        samples, "rabbitmq_cluster_exchange_bindings", vhost="/", exchange="", type="direct"
    )


@pytest.mark.parametrize("name", ['a"b\\c\nd', "\udcff", "é", "{}=,"])
async def test_any_name_is_a_label(name: str) -> None:
    text = f"m{label_text({'queue': name})} 1\n"
    (family,) = text_string_to_metric_families(text)
    sample: Any = family.samples[0]
    assert sample.labels["queue"] == name.replace("\udcff", "\ufffd")
