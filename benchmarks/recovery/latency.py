"""Confirms beside the disk alone: latency and rate with so many messages in flight.

The disk is measured right before the brokers, in the same directory: n messages in flight are set
beside one write of n KiB and one fdatasync, the least that a batch of all of them can wait for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import fmean

from benchmarks import flow, load
from benchmarks.brokers import Broker
from benchmarks.measure import Latencies, Span, latencies, quantile_ms, rate
from benchmarks.recovery.cases import BODY_BYTES
from benchmarks.recovery.runs import DISTINCT_BODIES
from benchmarks.traffic import Traffic

IN_FLIGHT = (1, 10, 100, 1000)
WARM_UP_S = 0.5
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
# Where the file of the raw syncs begins anew, so that a long measure needs little space.
RAW_FILE_BYTES = 256 << 20
TRACE_S = 2.0
# What a log writes with; sockets use other calls, threads and memory are not of interest.
TRACED = "write,pwrite64,writev,pwritev,pwritev2,fdatasync,fsync,fallocate,ftruncate,openat,rename,unlink"
SYNCS = ("fdatasync", "fsync")


def _figures(samples: Latencies) -> flow.Figures:
    return {name: quantile_ms(samples, part) for name, part in QUANTILES.items()}


def raw_sync(directory: Path, in_flight: int, seconds: float, allocated: bool) -> flow.Figures:
    """Write so many KiB at once behind the last, fdatasync, and again, for a time.

    Args:
        directory: on the disk that is measured.
        in_flight: KiB of a write.
        seconds: how long.
        allocated: into space that was allocated before, as a log may do it; otherwise
            the file grows, and each sync writes its size too.
    """
    size = in_flight * BODY_BYTES
    block = os.urandom(size)
    samples: Latencies = []
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        if allocated:
            os.posix_fallocate(descriptor, 0, RAW_FILE_BYTES)
            os.fsync(descriptor)
        at = 0
        stop_s = time.monotonic() + seconds
        while time.monotonic() < stop_s:
            if at + size > RAW_FILE_BYTES:
                at = 0
                if not allocated:
                    os.ftruncate(descriptor, 0)
            begun_ns = time.monotonic_ns()
            os.pwrite(descriptor, block, at)
            os.fdatasync(descriptor)
            samples.append((time.monotonic_ns() - begun_ns, 1))
            at += size
    mean_s = fmean(latency_ns for latency_ns, _ in samples) / 1e9
    return _figures(samples) | {"rate": in_flight / mean_s}


def confirm_latency(broker: Broker, in_flight: int, seconds: float) -> flow.Figures:
    """Publish to one durable queue without a consumer, so many unconfirmed at most, for a time."""
    topology = flow.Topology((flow.fresh_name("latency"),))
    traffic = Traffic("", topology.queues, BODY_BYTES, distinct_bodies=DISTINCT_BODIES)
    with flow.declared(broker.address, topology) as queues:
        plan = load.PublisherPlan(traffic, in_flight)
        (work,) = flow.publish(broker, (plan,), WARM_UP_S + seconds).work
        queues.left = work.begun.count
    begin_ns = work.begun.times_ns[0]
    span = Span(begin_ns + int(WARM_UP_S * 1e9), begin_ns + int((WARM_UP_S + seconds) * 1e9))
    samples = latencies(work.begun, work.confirmed, span, work.confirmed_early_ns)
    return _figures(samples) | {"rate": rate((work.confirmed,), span)}


def system_calls(broker: Broker, in_flight: int) -> flow.Figures:
    """System calls on files for each sync, by strace, under load; nothing where it cannot be."""
    strace = shutil.which("strace")
    if strace is None or broker.pid is None:
        return {}
    topology = flow.Topology((flow.fresh_name("calls"),))
    traffic = Traffic("", topology.queues, BODY_BYTES)
    plan = load.PublisherPlan(traffic, in_flight)
    with (
        tempfile.NamedTemporaryFile("r", prefix="benchmark-strace-") as counts,
        flow.declared(broker.address, topology) as queues,
    ):
        command = [strace, "-f", "-c", "-e", f"trace={TRACED}", "-o", counts.name]
        tracer = subprocess.Popen(
            [*command, "-p", str(broker.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            (work,) = flow.publish(broker, (plan,), TRACE_S).work
            queues.left = work.begun.count
            tracer.terminate()
            tracer.wait()
        finally:
            tracer.kill()
            tracer.wait()
        calls = parse_counts(counts.read())
    syncs = sum(calls.get(name, 0) for name in SYNCS)
    return {"calls_per_sync": sum(calls.values()) / syncs} if syncs else {}


def parse_counts(table: str) -> dict[str, int]:
    """Calls by name out of the table of `strace -c`."""
    calls = {}
    for line in table.splitlines():
        fields = line.split()
        # % time, seconds, usecs/call, calls, perhaps errors, name
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            calls[fields[-1]] = int(fields[3])
    return calls
