"""Prometheus's text format, in slices: a metric of ten thousand queues holds up nobody."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qlog.server.broker.operations import Histogram
from qlog.server.http.pace import ITEMS_AT_ONCE, Pace

CHUNK_BYTES = 64 * 1024
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["gauge", "counter", "untyped", "histogram"]
Labels = Mapping[str, str]
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_NO_LABELS: Labels = MappingProxyType({})
_SURROGATES = {code: "\ufffd" for code in range(0xD800, 0xE000)}


@dataclass(frozen=True, slots=True)
class Metric:
    """A name, what kind it is of, and what it means."""

    name: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True)
class Block:
    """Metrics of the same objects: each row has the labels of one, and a value for each metric."""

    metrics: Sequence[Metric]
    rows: Sequence[tuple[str, Sequence[Any]]]


def label_text(labels: Labels) -> str:
    """Labels between their braces; nothing for none."""
    if not labels:
        return ""
    parts = [
        f'{name}="{value.translate(_SURROGATES).translate(_ESCAPES)}"'
        for name, value in labels.items()
    ]
    return "{" + ",".join(parts) + "}"


def one(metric: Metric, value: Any, labels: Labels = _NO_LABELS) -> Block:
    """A metric with one value."""
    return Block([metric], [(label_text(labels), [value])])


async def written(blocks: AsyncIterator[Block]) -> AsyncGenerator[bytes, None]:
    """The blocks as text, in chunks, metric by metric."""
    pace = Pace()
    lines: list[str] = []
    size = 0
    async for block in blocks:
        for place, metric in enumerate(block.metrics):
            lines.append(
                f"# TYPE {metric.name} {metric.kind}\n# HELP {metric.name} {metric.help}\n"
            )
            for number, (labels, values) in enumerate(block.rows, 1):
                line = _lines(metric, labels, values[place])
                lines.append(line)
                size += len(line)
                if size >= CHUNK_BYTES:
                    yield "".join(lines).encode()
                    lines, size = [], 0
                if not number % ITEMS_AT_ONCE:
                    await pace.rest()
        await pace.rest()
    yield "".join(lines).encode()


def _lines(metric: Metric, labels: str, value: Any) -> str:
    if not isinstance(value, Histogram):
        return f"{metric.name}{labels} {_number(value)}\n"
    parts: list[str] = []
    inner = labels[1:-1] + "," if labels else ""
    below = 0
    for bound, count in zip([*value.bounds, "+Inf"], value.counts, strict=True):
        below += count
        parts.append(f'{metric.name}_bucket{{{inner}le="{bound}"}} {below}\n')
    parts.append(f"{metric.name}_sum{labels} {_number(value.total)}\n")
    parts.append(f"{metric.name}_count{labels} {below}\n")
    return "".join(parts)


def _number(value: float | bool) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return repr(value)


def metrics(kind: Kind, names: Iterable[tuple[str, str]], prefix: str = "") -> list[Metric]:
    """Several metrics of one kind; a counter's name gets its ending."""
    ending = "_total" if kind == "counter" else ""
    return [Metric(f"{prefix}{name}{ending}", kind, text) for name, text in names]
