"""Who asks, and what the tags of a user let him ask for: RabbitMQ's rules and texts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from qlog.server.broker.operations import Actor
from qlog.server.http.refusals import Refusal, not_authorised, refusal

REALM = 'Basic realm="RabbitMQ Management"'
# What an endpoint asks of a user, from little to much.
Tag = Literal["any", "management", "policymaker", "monitoring", "administrator"]
_MANAGERS = frozenset(("management", "policymaker", "monitoring", "administrator"))
_LETS_IN: dict[Tag, tuple[frozenset[str], str]] = {
    "management": (_MANAGERS, "Not management user"),
    "policymaker": (frozenset(("policymaker", "administrator")), "Not policymaker user"),
    "monitoring": (frozenset(("monitoring", "administrator")), "Not monitor user"),
    "administrator": (frozenset(("administrator",)), "Not administrator user"),
}
OWNER = "(owner)"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: a user, or the owner of the data directory, who came by its socket."""

    name: str
    tags: frozenset[str]
    vhosts: Collection[str]
    actor: Actor  # whose rights count

    @property
    def administrator(self) -> bool:
        """May change everything."""
        return "administrator" in self.tags

    @property
    def monitor(self) -> bool:
        """May see everything."""
        return bool(self.tags & {"administrator", "monitoring"})

    def sees(self, vhost: str) -> bool:
        """Whether what is in the vhost may be seen."""
        return self.monitor or vhost in self.vhosts

    def enters(self, vhost: str) -> bool:
        """Whether what is in the vhost may be changed, as far as permissions say."""
        return self.administrator or vhost in self.vhosts

    def check(self, tag: Tag) -> None:
        """Raises 401 if the tags do not let the user ask for this."""
        if tag != "any":
            allowed, text = _LETS_IN[tag]
            if not self.tags & allowed:
                raise not_authorised(text)


THE_OWNER = Identity(OWNER, frozenset(("administrator",)), (), Actor(OWNER))
NOBODY = Identity("", frozenset(), (), Actor(""))  # for what everybody may see


def no_credentials() -> Refusal:
    """401 without a word: the client should ask its user."""
    return Refusal(401, None, {"www-authenticate": REALM})


def wrong_credentials() -> Refusal:
    """401: nobody is let in with these."""
    wrong = refusal(401, "not_authorized", "Not_Authorized")
    wrong.headers["www-authenticate"] = REALM
    return wrong


def credentials(header: str | None) -> tuple[str, bytes]:
    """Name and password of basic authentication. Raises 401."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        raise no_credentials()
    try:
        name, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        if not colon:
            raise wrong_credentials()
        return name.decode(), password
    except (binascii.Error, UnicodeDecodeError):
        raise wrong_credentials() from None
