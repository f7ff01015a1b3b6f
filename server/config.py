"""Settings of the daemon: defaults, a TOML file, the environment, the command line; the last one wins.

Every setting is also `QLOG_<NAME>` in the environment. Raises ConfigError with one line that names
the setting and where it came from.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qlog import __version__
from qlog.server.broker.broker import BrokerSettings
from qlog.storage.settings import StoreSettings

LOG_LEVELS = ("debug", "info", "warning", "error")
# RabbitMQ's names, respected on a first start so that its container recipes work.
RABBITMQ_NAMES = {
    "default_user": "RABBITMQ_DEFAULT_USER",
    "default_pass": "RABBITMQ_DEFAULT_PASS",
    "default_vhost": "RABBITMQ_DEFAULT_VHOST",
}


class ConfigError(Exception):
    """A setting that cannot be; str() is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `qlog serve`. Sizes in bytes, times in seconds.

    `memory_high_watermark_bytes` and `disk_free_limit_bytes` block publishers; 0 for the first means
    40 % of the machine's memory, as in RabbitMQ.
    """

    data_dir: Path = Path("qlog-data")
    host: str = "127.0.0.1"
    port: int = 5672
    log_level: str = "info"
    default_user: str = "guest"
    default_pass: str = "guest"
    default_vhost: str = "/"
    loopback_users: str = "guest"
    product: str = "RabbitMQ"
    version: str = "4.2.0"
    frame_bytes_max: int = 131072
    channel_max: int = 2047
    heartbeat_s: int = 60
    message_bytes_max: int = 128 * 1024 * 1024
    consumer_timeout_s: float = 1800.0
    memory_high_watermark_bytes: int = 0
    disk_free_limit_bytes: int = 50_000_000
    ack_flush_s: float = 0.005
    ledger_sync_s: float = 1.0
    checkpoint_interval_s: float = 1.0
    segment_bytes_max: int = 64 * 1024 * 1024
    ledger_bytes_max: int = 16 * 1024 * 1024
    cache_bytes_max: int = 32 * 1024 * 1024
    compact_share_max: float = 0.3
    compact_age_s: float = 60.0
    compact_bytes_per_s: int = 32 * 1024 * 1024

    def broker_settings(self) -> BrokerSettings:
        """What the broker's rules need of them."""
        return BrokerSettings(
            default_user=self.default_user,
            default_pass=self.default_pass,
            default_vhost=self.default_vhost,
            loopback_users=frozenset(self.loopback_users.replace(",", " ").split()),
            product=self.product,
            version=self.version,
            platform=f"qlog {__version__}",
            frame_bytes_max=self.frame_bytes_max,
            channel_max=self.channel_max,
            heartbeat_s=self.heartbeat_s,
            message_bytes_max=self.message_bytes_max,
            consumer_timeout_s=self.consumer_timeout_s,
        )

    def store_settings(self) -> StoreSettings:
        """What the storage engine needs of them."""
        return StoreSettings(
            ack_flush_s=self.ack_flush_s,
            ledger_sync_s=self.ledger_sync_s,
            checkpoint_interval_s=self.checkpoint_interval_s,
            segment_bytes_max=self.segment_bytes_max,
            ledger_bytes_max=self.ledger_bytes_max,
            cache_bytes_max=self.cache_bytes_max,
            compact_share_max=self.compact_share_max,
            compact_age_s=self.compact_age_s,
            compact_bytes_per_s=self.compact_bytes_per_s,
        )


_TYPES: dict[str, type] = {"Path": Path, "str": str, "int": int, "float": float}
# Smallest and largest values that make sense; a frame is at least what the specification demands.
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "frame_bytes_max": (8192, 2**31 - 1),
    "channel_max": (1, 65535),
    "heartbeat_s": (0, 65535),
    "message_bytes_max": (1, 512 * 1024 * 1024),
    "consumer_timeout_s": (0, 10**9),
    "memory_high_watermark_bytes": (0, 2**62),
    "disk_free_limit_bytes": (0, 2**62),
    "ack_flush_s": (0.001, 1),
    "ledger_sync_s": (0.001, 60),
    "checkpoint_interval_s": (0.01, 600),
    "segment_bytes_max": (64 * 1024, 2**31 - 1),
    "ledger_bytes_max": (64 * 1024, 2**31 - 1),
    "cache_bytes_max": (0, 2**40),
    "compact_share_max": (0, 1),
    "compact_age_s": (0, 10**9),
    "compact_bytes_per_s": (1, 2**40),
}


def load(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Put the settings together.

    Arguments: `options` what was given on the command line; None values were not given.
    """
    environment = os.environ if environment is None else environment
    given: dict[str, tuple[Any, str]] = {}
    if config_file is not None:
        given.update(_from_file(config_file))
    for field in fields(Settings):
        for name in (RABBITMQ_NAMES.get(field.name), f"QLOG_{field.name.upper()}"):
            if name and name in environment:
                given[field.name] = environment[name], f"${name}"
    for name, value in (options or {}).items():
        if value is not None:
            given[name] = value, f"--{name.replace('_', '-')}"
    kinds = {field.name: _TYPES[str(field.type)] for field in fields(Settings)}
    return replace(
        Settings(),
        **{name: _value(name, kinds[name], *pair) for name, pair in given.items()},
    )


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    names = {field.name for field in fields(Settings)}
    if unknown := sorted(set(table) - names):
        raise ConfigError(
            f"{path}: unknown setting '{unknown[0]}'; there are: {', '.join(sorted(names))}"
        )
    return {name: (value, str(path)) for name, value in table.items()}


def _value(name: str, kind: type, value: Any, source: str) -> Any:
    try:
        if isinstance(value, (list, dict)) or (isinstance(value, bool) and kind is str):
            raise ValueError
        converted = kind(str(value))  # TOML's true is not the number 1
    except ValueError:
        raise ConfigError(
            f"{source}: '{value}' is not a valid {kind.__name__} for {name}"
        ) from None
    low, high = _RANGES.get(name, (None, None))
    if low is not None and high is not None and not low <= converted <= high:
        raise ConfigError(f"{source}: {name} must be from {low} to {high}, not {value}")
    if name == "log_level" and converted not in LOG_LEVELS:
        raise ConfigError(
            f"{source}: log_level must be one of {', '.join(LOG_LEVELS)}, not {value}"
        )
    return converted
