"""What RabbitMQ's API does not have: the storage, the loop, and the description of the API."""

from __future__ import annotations

from typing import Any

from qlog import __version__
from qlog.server.broker.operations import Histogram
from qlog.server.http.ask import Ask
from qlog.server.http.table import Endpoint


async def about(ask: Ask) -> dict[str, Any]:
    """qlog's own version, and the directory."""
    return {
        "version": __version__,
        "data_dir": ask.context.data_dir,
        "uptime_s": ask.context.uptime_s(),
    }


async def storage(ask: Ask) -> dict[str, Any]:
    """The log: its segments, what of them is alive, commits and compactions."""
    figures = ask.operations.storage()
    commits = figures.commits
    live_ratio = figures.live_bytes / figures.segment_bytes if figures.segment_bytes else 1.0
    return {
        "segments": figures.segment_count,
        "segment_bytes": figures.segment_bytes,
        "live_bytes": figures.live_bytes,
        "live_ratio": live_ratio,
        "cache_bytes": figures.cache_bytes,
        "cold_read_bytes": figures.cold_bytes,
        "pending_bytes": figures.pending_bytes,
        "lsn": figures.lsn,
        "durable_lsn": figures.durable_lsn,
        "compactions": figures.compaction_count,
        "compacted_bytes": figures.compacted_bytes,
        "commits": {
            "count": commits.took_s.count,
            "seconds": histogram(commits.took_s),
            "sync_seconds": histogram(commits.sync_s),
            "messages": histogram(commits.messages),
            "bytes": histogram(commits.octets),
        },
    }


async def loop(ask: Ask) -> dict[str, Any]:
    """How late the loop is, looked at once a second."""
    lag = ask.context.lag
    return {"lag_s": lag.last_s, "lags_s": histogram(lag.late_s)}


def histogram(values: Histogram) -> dict[str, Any]:
    """How many values were up to each bound, and above the last (null); their sum."""
    bounds = [*values.bounds, None]
    return {
        "sum": values.total,
        "buckets": [
            {"up_to": bound, "count": count}
            for bound, count in zip(bounds, values.counts, strict=True)
        ],
    }


ENDPOINTS = [
    Endpoint("GET", "/qlog", about, "qlog's own version"),
    Endpoint("GET", "/qlog/storage", storage, "The storage", tag="monitoring"),
    Endpoint("GET", "/qlog/loop", loop, "The loop", tag="monitoring"),
]
