"""A steady load on a broker that is looked at, beside one that nobody can look at."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import mean

from benchmarks.brokers import Broker, own_broker, todays
from benchmarks.flow import Figures
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import RATES, run_plain

SCRAPE_EVERY_S = 5.0
SCRAPE_TIMEOUT_S = 10.0


def run_scraped(broker: Broker, settings: Settings) -> Figures:
    """The plain load on two brokers of its own in turn, one of which is scraped meanwhile.

    Plain, scraped, scraped, plain: what the disk still has to write of one load, the next one pays.
    """
    management, metrics = _free_port(), _free_port()
    unseen = {"QLOG_MANAGEMENT_PORT": "0", "QLOG_METRICS_PORT": "0"}
    seen = {"QLOG_MANAGEMENT_PORT": str(management), "QLOG_METRICS_PORT": str(metrics)}
    part = replace(settings, seconds=settings.seconds / 2)
    plain: list[Figures] = []
    scraped: list[Figures] = []
    with ExitStack() as stack:
        alone = stack.enter_context(own_broker(settings.directory, settings=unseen))
        watched = stack.enter_context(own_broker(settings.directory, settings=seen))
        plain.append(run_plain(alone, part, body_bytes=1024))
        with scraping(metrics, settings.warm_up_s):
            scraped.append(run_plain(watched, part, body_bytes=1024))
            scraped.append(run_plain(watched, part, body_bytes=1024))
        plain.append(run_plain(alone, part, body_bytes=1024))
    without, figures = _mean(plain), _mean(scraped)
    return figures | {
        "plain_rate": without["rate"],
        "plain_loop_cpu_us": without["loop_cpu_us"],
        "scraped_to_plain": figures["rate"] / without["rate"],
        "scraped_to_plain_cpu": figures["loop_cpu_us"] / without["loop_cpu_us"],
    }


def _mean(parts: list[Figures]) -> Figures:
    names = set.intersection(*map(set, parts))
    return {name: mean(part[name] for part in parts) for name in names}


@contextmanager
def scraping(port: int, wait_s: float) -> Iterator[None]:
    """Somebody who scrapes while the body is run; the first time after a while."""
    stop = threading.Event()
    scraper = threading.Thread(target=_scrape, args=(port, wait_s, stop))
    scraper.start()
    try:
        yield
    finally:
        stop.set()
        scraper.join()


def _scrape(port: int, wait_s: float, stop: threading.Event) -> None:
    """Ask as Prometheus does."""
    url = f"http://127.0.0.1:{port}/metrics"
    next_s = time.monotonic() + wait_s
    while not stop.wait(max(0.0, next_s - time.monotonic())):
        next_s += SCRAPE_EVERY_S
        with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as answer:
            answer.read()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SCENARIOS = (
    Scenario(
        "flow-1k-scraped",
        f"steady flow of 1 KiB with management, metrics and a scrape every {SCRAPE_EVERY_S:.0f} s",
        "as flow-1k; in turn on a broker without management and metrics and on one with both",
        run_scraped,
        ("scraped_to_plain", "scraped_to_plain_cpu", "plain_rate", "plain_loop_cpu_us", *RATES),
        applies=lambda broker: broker.label == todays().label,
    ),
)
