"""What can be set about the broker's rules.

An operator can set the fields that have a `Meta`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from qlog import __version__

# The most that the protocol can say: RabbitMQ's "no limit".
CHANNELS_MAX = 65535
FRAME_BYTES_MAX = 2**31 - 1
NO_FILE = "none"  # the value of a setting that names a file, with which there is none
NOBODY = "none"  # the value of `anonymous_login_user` with which ANONYMOUS is not offered


class BrokerSettings(Struct, frozen=True, kw_only=True):
    """Who may come in, and what clients are told and may do."""

    default_user: Annotated[
        str,
        Meta(
            description="The user that a first start makes.",
            extra={"also": "RABBITMQ_DEFAULT_USER"},
        ),
    ] = "guest"
    default_pass: Annotated[
        str,
        Meta(
            description="The password of that user.",
            extra={"also": "RABBITMQ_DEFAULT_PASS", "secret": True},
        ),
    ] = "guest"
    default_vhost: Annotated[
        str,
        Meta(
            description="The virtual host that a first start makes.",
            extra={"also": "RABBITMQ_DEFAULT_VHOST"},
        ),
    ] = "/"
    default_user_tags: Annotated[frozenset[str], Meta(description="The tags of that user.")] = (
        frozenset({"administrator"})
    )
    default_permissions_configure: Annotated[
        str, Meta(description="What that user may configure in that virtual host (a pattern).")
    ] = ".*"
    default_permissions_write: Annotated[str, Meta(description="What it may write to there.")] = (
        ".*"
    )
    default_permissions_read: Annotated[str, Meta(description="What it may read there.")] = ".*"
    load_definitions: Annotated[
        str,
        Meta(
            description="A file of RabbitMQ's definitions (JSON) that each start loads; none: no "
            "file. A first start makes the default user and vhost only if the file has neither "
            "users nor vhosts.",
            extra={"metavar": "FILE"},
        ),
    ] = "none"
    loopback_users: Annotated[
        frozenset[str], Meta(description="Users who are let in from this machine only.")
    ] = frozenset({"guest"})
    anonymous_login_user: Annotated[
        str,
        Meta(
            description="The user of a client that logs in with the mechanism ANONYMOUS; none: the "
            "mechanism is not offered."
        ),
    ] = "guest"
    anonymous_login_pass: Annotated[
        str,
        Meta(
            description="The password of that user. If it is wrong, ANONYMOUS is refused.",
            extra={"secret": True},
        ),
    ] = "guest"
    tls_login_from: Annotated[
        Literal["distinguished_name", "common_name", "subject_alternative_name"],
        Meta(
            description="What of a client's certificate is the name of the user (mechanism "
            "EXTERNAL)."
        ),
    ] = "distinguished_name"
    tls_login_san_type: Annotated[
        Literal["dns", "ip", "email", "uri"],
        Meta(description="Which alternative name, if it is one."),
    ] = "dns"
    tls_login_san_index: Annotated[
        int, Meta(ge=0, le=1000, description="Which of these, counted from 0.")
    ] = 0
    product: Annotated[
        str, Meta(description="The product name that clients are told; some depend on it.")
    ] = "RabbitMQ"
    version: Annotated[
        str,
        # As an option, `--version` is qlog's own.
        Meta(
            description="The version that clients are told; some depend on it.",
            extra={"option": False},
        ),
    ] = "4.2.0"
    frame_bytes_max: Annotated[
        int,
        Meta(
            ge=8192,  # 4.2.3 of the specification demands 4096; RabbitMQ takes no less than this
            le=FRAME_BYTES_MAX,
            description="The largest frame that clients are offered.",
            extra={"unit": "bytes"},
        ),
    ] = 131072
    channel_max: Annotated[
        int, Meta(ge=1, le=CHANNELS_MAX, description="How many channels a connection may have.")
    ] = 2047
    heartbeat_s: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="The heartbeat that clients are offered; 0: none.",
            extra={"unit": "s"},
        ),
    ] = 60
    message_bytes_max: Annotated[
        int,
        Meta(
            ge=1,
            le=512 << 20,
            description="Larger messages are refused with 406.",
            extra={"unit": "bytes"},
        ),
    ] = 128 << 20
    consumer_timeout_s: Annotated[
        float,
        Meta(
            ge=0,
            le=10**9,
            description="How long a delivery may stay unacknowledged; 0: for ever.",
            extra={"unit": "s"},
        ),
    ] = 1800.0
    platform: str = f"qlog {__version__}"
