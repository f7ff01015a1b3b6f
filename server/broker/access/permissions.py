"""What a user may do in a vhost: patterns for configure, write and read, and for routing keys.

RabbitMQ's rules (rabbit_auth_backend_internal): a pattern is looked for anywhere in a name, an empty
one matches only the empty name, and the default exchange is called `amq.default`. Topic permissions
say with which routing keys a topic exchange may be used; an exchange without one may be used with
all. Promises that what cannot be decided, for a pattern that is broken or takes too long, is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

from qlog.server.amqp.errors import access_refused
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.patterns import InvalidPattern, Pattern
from qlog.server.broker.features.terms import term

logger = logging.getLogger("qlog.broker")

Right: TypeAlias = Literal["configure", "write", "read"]
Kind: TypeAlias = Literal["queue", "exchange"]
TopicPatterns: TypeAlias = dict[str, tuple[str, str]]  # exchange -> (write, read)

DEFAULT_EXCHANGE = "amq.default"  # how rights call the exchange without a name
# Patterns that are found in every name, so that nothing need be looked for.
_EVERYTHING = (".*", "^.*", ".*$")
# Lists of names as patterns are longer than those of policies. It takes some 10 ms to compile one
# of this length.
PATTERN_BYTES_MAX = 4096


def check_pattern(text: object) -> str:
    """A pattern that an operator gives. Raises InvalidParameter."""
    if not isinstance(text, str):
        raise InvalidParameter(f"a pattern should be a text, actually was {term(text)}")
    try:
        Pattern(_searched(text), "a pattern", PATTERN_BYTES_MAX).try_hard_names()
    except InvalidPattern as error:
        raise InvalidParameter(f"the pattern {term(text)} {error}") from error
    return text


def check_topic_pattern(text: object) -> str:
    """The same for routing keys, with variables in it. Raises InvalidParameter."""
    if isinstance(text, str):
        check_pattern(_expanded(text, {}))
    return text if isinstance(text, str) else check_pattern(text)


class Rights:
    """The rights of one user in one vhost, as they are; others are another object.

    `patterns` is None for a user without permissions there, who may do nothing.
    """

    __slots__ = ("_compiled", "_patterns", "_topics", "_user", "_vhost", "free_to_publish")

    def __init__(
        self,
        user: str,
        vhost: str,
        patterns: tuple[str, str, str] | None,
        topics: Mapping[str, tuple[str, str]],
    ) -> None:
        self._user = user
        self._vhost = vhost
        self._patterns: dict[Right, str] = (
            {} if patterns is None else dict(zip(_RIGHTS, patterns, strict=True))
        )
        self._topics = dict(topics)
        self._compiled: dict[tuple[Right, str, str], Pattern | None] = {}
        # Nothing need be asked when a message is published: any exchange and routing key is right.
        self.free_to_publish = self._patterns.get("write") in _EVERYTHING and not topics

    def check(self, right: Right, kind: Kind, name: str) -> None:
        """Raises 403 if the user has no such right to a queue or an exchange."""
        name = name or (DEFAULT_EXCHANGE if kind == "exchange" else name)
        text = self._patterns.get(right)
        if text in _EVERYTHING:
            return
        if text is None or not self._matches((right, "", ""), text, name):
            raise access_refused(
                f"{right} access to {kind} '{name}' in vhost '{self._vhost}' refused "
                f"for user '{self._user}'"
            )

    def check_topic(self, right: Right, exchange: str, key: str, client_id: str = "") -> None:
        """Raises 403 if the user may not use a topic exchange with this routing key."""
        patterns = self._topics.get(exchange)
        if patterns is None:
            return
        text = patterns[0] if right == "write" else patterns[1]
        if text in _EVERYTHING:
            return
        about = right, exchange, client_id if "{client_id}" in text else ""
        variables = {"username": self._user, "vhost": self._vhost, "client_id": about[2]}
        if not self._matches(about, _expanded(text, variables), key):
            raise access_refused(
                f"{right} access to topic '{key}' in exchange '{exchange}' "
                f"in vhost '{self._vhost}' refused for user '{self._user}'"
            )

    def _matches(self, about: tuple[Right, str, str], text: str, name: str) -> bool:
        if about not in self._compiled:
            if len(self._compiled) >= _COMPILED_MAX:
                self._compiled.clear()
            self._compiled[about] = self._compile(about, text)
        pattern = self._compiled[about]
        return pattern is not None and pattern.matches(name)

    def _compile(self, about: tuple[Right, str, str], text: str) -> Pattern | None:
        """None: it is broken, and nothing matches it; an old directory may have one."""
        right, exchange, _ = about
        on = f" on topics of exchange '{exchange}'" if exchange else ""
        of = f"{right} permission{on} of user '{self._user}' in vhost '{self._vhost}'"
        try:
            return Pattern(_searched(text), of, 2 * PATTERN_BYTES_MAX)
        except InvalidPattern as error:
            logger.error("%s matches nothing: it %s", of, error)
            return None


_RIGHTS: tuple[Right, Right, Right] = ("configure", "write", "read")
_COMPILED_MAX = 100  # of one user in one vhost; more than that are client ids


def _searched(text: str) -> str:
    return text or "^$"


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """A topic pattern with its variables replaced, each as the text that it is.

    (RabbitMQ lets a name in as a pattern, so that the user `.*` would have all topics.) A variable
    that has no value stays as it is, and stands for itself.
    """

    def value(found: re.Match[str]) -> str:
        return re.escape(variables.get(found[1]) or found[0])

    return _VARIABLE.sub(value, text)


_VARIABLE = re.compile(r"\{(username|vhost|client_id)\}")
