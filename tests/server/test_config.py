"""Settings: which source wins, what is said of a wrong one, and that all who name them agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlog.server import config
from qlog.server.config import ConfigError, Settings, definitions, load
from qlog.tools import settings_table
from tests.live.server import ROOT

# What settings were called in the first release: files and environments that name them stay valid.
NAMES_OF_0_1 = [
    "data_dir",
    "host",
    "port",
    "log_level",
    "default_user",
    "default_pass",
    "default_vhost",
    "loopback_users",
    "product",
    "version",
    "frame_bytes_max",
    "channel_max",
    "heartbeat_s",
    "message_bytes_max",
    "consumer_timeout_s",
    "memory_high_watermark_bytes",
    "disk_free_limit_bytes",
    "ack_flush_s",
    "ledger_sync_s",
    "checkpoint_interval_s",
    "segment_bytes_max",
    "ledger_bytes_max",
    "cache_bytes_max",
    "compact_share_max",
    "compact_age_s",
    "compact_bytes_per_s",
]


def value_of(settings: Settings, name: str) -> Any:
    """The value of one setting, wherever it is."""
    group = definitions()[name].group
    return getattr(getattr(settings, group) if group else settings, name)


def test_defaults_without_anything() -> None:
    assert load(environment={}) == Settings()
    assert config.of() == Settings()


def test_last_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "qlog.toml"
    file.write_text('port = 1\nhost = "file"\nheartbeat_s = 7\nlog_level = "error"\n')
    settings = load(
        config_file=file,
        environment={"QLOG_PORT": "2", "QLOG_HOST": "environment", "HOST": "no"},
        options={"port": "3", "log_level": None, "host": []},
    )
    assert (settings.network.port, settings.network.host) == (3, ("environment",))
    assert (settings.broker.heartbeat_s, settings.log.log_level) == (7, "error")


def test_names_of_rabbitmq_give_way_to_our_own() -> None:
    environment = {
        "RABBITMQ_DEFAULT_USER": "theirs",
        "RABBITMQ_DEFAULT_PASS": "secret",
        "RABBITMQ_DEFAULT_VHOST": "v",
        "QLOG_DEFAULT_USER": "ours",
    }
    settings = load(environment=environment).broker
    assert (settings.default_user, settings.default_pass) == ("ours", "secret")
    assert settings.default_vhost == "v"


@pytest.mark.parametrize("name", list(definitions()))
def test_every_setting_is_in_the_environment_and_the_file(tmp_path: Path, name: str) -> None:
    """Its default, given as a text, is the default; the file takes it by its type, too."""
    setting = definitions()[name]
    assert value_of(Settings(), name) == setting.default
    assert setting.environment[-1] == f"QLOG_{name.upper()}"
    for variable in setting.environment:
        assert load(environment={variable: setting.default_text}) == Settings()
    file = tmp_path / "qlog.toml"
    values = [f'"{setting.default_text}"']
    if setting.low is not None:
        values.append(setting.default_text)
    if setting.is_list:
        values.append(str(sorted(setting.default)))
    for value in values:
        file.write_text(f"{name} = {value}")
        assert load(config_file=file, environment={}) == Settings()


@pytest.mark.parametrize("name", [name for name, one in definitions().items() if one.range_text])
def test_both_ends_of_a_range_are_in_it(name: str) -> None:
    setting = definitions()[name]
    assert setting.low is not None and setting.high is not None
    for end, beyond in ((setting.low, setting.low - 1), (setting.high, setting.high + 1)):
        assert value_of(config.of(**{name: end}), name) == end
        with pytest.raises(ConfigError, match=f"^argument: {name} must be a"):
            config.of(**{name: beyond})


def test_names_stay_valid() -> None:
    assert set(NAMES_OF_0_1) <= set(definitions())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("guest, other", {"guest", "other"}),
        ("guest other", {"guest", "other"}),
        (["guest", "other,third"], {"guest", "other", "third"}),
        ("", set()),
    ],
)
def test_lists(given: str | list[str], expected: set[str]) -> None:
    assert config.of(loopback_users=given).broker.loopback_users == expected


@pytest.mark.parametrize(
    ("toml", "environment", "options", "text"),
    [
        ("port = 'x'", {}, {}, "{}: port must be a whole number, 0 to 65535, not 'x'"),
        ("port = true", {}, {}, "{}: port must be a whole number, 0 to 65535, not True"),
        ("port = 1.5", {}, {}, "{}: port must be a whole number, 0 to 65535, not 1.5"),
        ("host = []", {}, {}, "{}: host must be a list of texts, not []"),
        ("host = true", {}, {}, "{}: host must be a list of texts, not True"),
        ("host = [1]", {}, {}, "{}: host must be a list of texts, not [1]"),
        ("data_dir = 1", {}, {}, "{}: data_dir must be the path of a directory, not 1"),
        ("version = 4.2", {}, {}, "{}: version must be a text, not 4.2"),
        ("port = ", {}, {}, "{} is not valid TOML: "),
        ("ports = 1", {}, {}, "{}: unknown setting 'ports'; did you mean 'port'? (`qlog serve --h"),
        ("[server]\nport = 1", {}, {}, "{}: unknown setting 'server' (`qlog serve --help` "),
        ("", {"QLOG_PORT": "70000"}, {}, "$QLOG_PORT: port must be a whole number, 0 to 65535, "),
        ("", {"QLOG_PORT": ""}, {}, "$QLOG_PORT: port must be a whole number, 0 to 65535, not ''"),
        ("", {"QLOG_HOST": " "}, {}, "$QLOG_HOST: host must be a list of texts, not ' '"),
        ("", {"QLOG_DATA_DIR": ""}, {}, "$QLOG_DATA_DIR: data_dir must be the path of a directory"),
        ("", {"QLOG_DATA_DIR": "a\0b"}, {}, "$QLOG_DATA_DIR: data_dir must be the path of a d"),
        ("", {"QLOG_PORT": "\udcff"}, {}, "$QLOG_PORT: port must be a whole number, 0 to 65535, "),
        ("", {"QLOG_DEFAULT_USER": "\udcff"}, {}, "$QLOG_DEFAULT_USER: default_user must be a t"),
        ("", {"QLOG_HOST": "a,\udcff"}, {}, "$QLOG_HOST: host must be a list of texts, not 'a,"),
        ("", {"QLOG_PORT": "9" * 30}, {}, "$QLOG_PORT: port must be a whole number, 0 to 65535, "),
        (
            "",
            {"QLOG_CONSUMER_TIMEOUT_S": "nan"},
            {},
            "$QLOG_CONSUMER_TIMEOUT_S: consumer_timeout_s must be a number, 0 to 1000000000, ",
        ),
        ("", {}, {"port": "-1"}, "--port: port must be a whole number, 0 to 65535, not '-1'"),
        (
            "",
            {},
            {"log_level": "loud"},
            "--log-level: log_level must be one of debug, info, warning, error, not 'loud'",
        ),
        (
            "",
            {"QLOG_CACHE_BYTES_MAX": "-1"},
            {},
            "$QLOG_CACHE_BYTES_MAX: cache_bytes_max must be a whole number, at least 0, not '-1'",
        ),
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


def test_directory_may_have_a_name_that_is_no_text() -> None:
    assert load(environment={"QLOG_DATA_DIR": "\udcff"}).data_dir == Path("\udcff")


def test_passwords_are_neither_options_nor_in_errors(tmp_path: Path) -> None:
    file = tmp_path / "qlog.toml"
    file.write_text("default_pass = 7361")
    with pytest.raises(ConfigError) as caught:
        load(config_file=file, environment={})
    assert str(caught.value) == f"{file}: default_pass must be a text"
    assert definitions()["default_pass"].option == ""


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "qlog.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(config_file=file, environment={})


# --- help, docs and definitions agree


def run_qlog(*arguments: str) -> str:
    """What it prints in wide lines."""
    return subprocess.run(
        [sys.executable, "-m", "qlog", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "500", "TERMINAL_WIDTH": "500"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_help_has_every_setting_with_its_help_default_and_range() -> None:
    said = " ".join(run_qlog("serve", "--help").split())
    options = set(re.findall(r"--[a-z-]+", said))
    own = {"--config", "--rabbitmq-conf", "--version", "--help"}
    assert options == own | {one.option for one in definitions().values() if one.is_option}
    assert {"anonymous_login_pass", "default_pass", "tls_key_password", "version"} == {
        name for name, one in definitions().items() if not one.is_option
    }
    for setting in definitions().values():
        if setting.is_option:
            range_text = f"; {setting.range_text}" if setting.range_text else ""
            choices = f"; {', '.join(setting.choices)}" if setting.choices else ""
            bounds = f"[default: {setting.default_text}{choices}{range_text}]"
            assert f"{setting.help} {bounds}" in said
            assert re.search(rf"{setting.option} [A-Z]", said)


def test_table_in_the_docs_is_made_of_the_definitions() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert page == settings_table.updated(page), "run python -m qlog.tools.settings_table"
    for name in definitions():
        assert f"\n| `{name}` |" in page


def test_page_without_markers_is_left_alone() -> None:
    for page in ("", settings_table.BEGIN):
        with pytest.raises(ValueError, match="no markers"):
            settings_table.updated(page)


def test_other_commands_do_not_load_the_settings() -> None:
    """They start faster without."""
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qlog", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    assert "qlog.tools.serve" in loaded
    assert not re.search(
        r"\b(msgspec|trio|lmdb|psutil|qlog\.server|qlog\.tools\.inspect)\b", loaded
    )
