"""Settings: which source wins, and the one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlog.server.config import ConfigError, Settings, load


def test_defaults_without_anything() -> None:
    assert load(environment={}) == Settings()


def test_last_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "qlog.toml"
    file.write_text('port = 1\nhost = "file"\nheartbeat_s = 7\nlog_level = "error"\n')
    settings = load(
        config_file=file,
        environment={"QLOG_PORT": "2", "QLOG_HOST": "environment", "HOST": "no"},
        options={"port": 3, "log_level": None},
    )
    assert (settings.port, settings.host, settings.heartbeat_s) == (3, "environment", 7)
    assert settings.log_level == "error"


def test_names_of_rabbitmq_give_way_to_our_own() -> None:
    environment = {
        "RABBITMQ_DEFAULT_USER": "theirs",
        "RABBITMQ_DEFAULT_PASS": "secret",
        "RABBITMQ_DEFAULT_VHOST": "v",
        "QLOG_DEFAULT_USER": "ours",
    }
    settings = load(environment=environment)
    assert (settings.default_user, settings.default_pass) == ("ours", "secret")
    assert settings.broker_settings().default_vhost == "v"


def test_every_setting_is_in_the_environment() -> None:
    for name, value in {
        "data_dir": "/data",
        "consumer_timeout_s": "1.5",
        "loopback_users": "guest, other",
        "cache_bytes_max": "1000",
    }.items():
        settings = load(environment={f"QLOG_{name.upper()}": value})
        assert str(getattr(settings, name)) == value
    users = load(environment={"QLOG_LOOPBACK_USERS": "guest, other"}).broker_settings()
    assert users.loopback_users == {"guest", "other"}


@pytest.mark.parametrize(
    ("toml", "environment", "options", "text"),
    [
        ("port = 'x'", {}, {}, "{}: 'x' is not a valid int for port"),
        ("port = true", {}, {}, "{}: 'True' is not a valid int for port"),
        ("port = 1.5", {}, {}, "{}: '1.5' is not a valid int for port"),
        ("loopback_users = ['guest']", {}, {}, "{}: '['guest']' is not a valid str"),
        ("host = true", {}, {}, "{}: 'True' is not a valid str for host"),
        ("port = ", {}, {}, "{} is not valid TOML: "),
        ("ports = 1", {}, {}, "{}: unknown setting 'ports'; there are: ack_flush_s, "),
        ("[server]\nport = 1", {}, {}, "{}: unknown setting 'server'"),
        ("", {"QLOG_PORT": "70000"}, {}, "$QLOG_PORT: port must be from 0 to 65535, not 70000"),
        (
            "",
            {"QLOG_CONSUMER_TIMEOUT_S": "nan"},
            {},
            "$QLOG_CONSUMER_TIMEOUT_S: consumer_timeout_s",
        ),
        ("", {}, {"port": -1}, "--port: port must be from 0 to 65535, not -1"),
        (
            "",
            {},
            {"log_level": "loud"},
            "--log-level: log_level must be one of debug, info, warning, error, not loud",
        ),
        ("", {"QLOG_FRAME_BYTES_MAX": "100"}, {}, "$QLOG_FRAME_BYTES_MAX: frame_bytes_max must be"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path, toml: str, environment: Mapping[str, str], options: Mapping[str, Any], text: str
) -> None:
    file = tmp_path / "qlog.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(config_file=file, environment=environment, options=options)
    assert str(caught.value).startswith(text.format(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "qlog.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(config_file=file, environment={})
