"""Regular expressions of operators, matched against names, each within a limit of time.

RabbitMQ's patterns are those of PCRE. PyPI's `regex` has nearly all of their syntax (lookaround,
atomic groups, possessive quantifiers, recursion, POSIX classes), and takes a limit of time, which
the standard library's `re` does not. Like RabbitMQ, a pattern sees the octets of a name (UTF-8),
and matches anywhere in it.

Promises that a match takes no more than MATCH_S of processor time, and that a pattern which is
slow on names that were made to be hard for it is refused when it is set. A name for which a
pattern takes longer is not matched, and the log says so; a pattern that was too slow STRIKES_MAX
times matches nothing any more, until it is set again or the broker starts. So no pattern can stall
the broker, whatever names clients give.
"""

from __future__ import annotations

import logging
import re

import regex

from qlog.server.broker.features.terms import term

logger = logging.getLogger("qlog.broker")

# A usual pattern takes some microseconds for a name of 255 octets. This is a slice of a job.
MATCH_S = 0.002
# The longest pattern, in octets: RabbitMQ has the same limit since 4.2. A pattern is compiled at
# once, in up to some ten milliseconds for this length.
PATTERN_BYTES_MAX = 1024
NAME_BYTES_MAX = 255  # the longest name of AMQP
# After so many names the time that a pattern costs is too much, however each name is bounded.
STRIKES_MAX = 20
# So many of the characters in a pattern are tried as names, those that come first.
PROBES_MAX = 8


_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


class InvalidPattern(Exception):
    """A pattern does not compile, is too long or too slow; str() goes on after its name."""


class Pattern:
    """A compiled pattern of at most so many octets. `of` says in the log whose it is.

    Raises InvalidPattern.
    """

    __slots__ = ("_compiled", "_of", "_strikes")

    def __init__(self, text: str, of: str, bytes_max: int = PATTERN_BYTES_MAX) -> None:
        if len(text) > bytes_max or len(text.encode(errors="replace")) > bytes_max:
            raise InvalidPattern(f"must not exceed {bytes_max} bytes")
        try:
            self._compiled = regex.compile(_ESCAPE.sub(_translated, text.encode()))
        except regex.error as error:
            message = f'{{"{error.msg}",{error.pos or 0}}}'
            raise InvalidPattern(
                f"should be regular expression but is invalid: {message}"
            ) from error
        except (RecursionError, OverflowError, MemoryError, ValueError) as error:
            raise InvalidPattern(
                f"should be regular expression but is invalid: {term(str(error))}"
            ) from error
        self._of = of
        self._strikes = 0

    def try_hard_names(self) -> None:
        """Raises InvalidPattern if the pattern is too slow for a name made to be hard for it."""
        for name in _hard_names(self._compiled.pattern):
            if self._search(name) is None:
                raise InvalidPattern(
                    f"takes too long to match: more than {MATCH_S * 1000:g} ms for a name such "
                    f"as {term(name[:8].decode('latin-1'))} repeated to {len(name)} bytes"
                )

    def matches(self, name: str) -> bool:
        """Whether the pattern is found in a name."""
        if self._strikes >= STRIKES_MAX:
            return False
        found = self._search(name.encode())
        if found is not None:
            return found
        self._strikes += 1
        logger.warning("%s does not match %r: it takes too long for this name", self._of, name)
        if self._strikes == STRIKES_MAX:
            logger.error(
                "%s matches nothing any more: it took too long for %d names",
                self._of,
                STRIKES_MAX,
            )
        return False

    def _search(self, name: bytes) -> bool | None:
        """None: it takes longer than it may."""
        try:
            return self._compiled.search(name, timeout=MATCH_S) is not None
        except (TimeoutError, MemoryError, RecursionError):
            return None


def _translated(escape: re.Match[bytes]) -> bytes:
    """PCRE's `\\z` is `\\Z` here: versions of `regex` before 2026 do not know it."""
    return b"\\Z" if escape[1] == b"z" else escape[0]


def _hard_names(pattern: bytes) -> list[bytes]:
    """Names that patterns with nested repetitions need exponential time for.

    A long repetition of what the pattern repeats, and an end that does not match.
    """
    own = [bytes((octet,)) for octet in dict.fromkeys(pattern) if chr(octet).isalnum()]
    units = [*own[:PROBES_MAX], b"a", b"a.", b"0", b"_"]
    return [
        (unit * NAME_BYTES_MAX)[: NAME_BYTES_MAX - 1] + end
        for unit in dict.fromkeys(units)
        for end in (b"!", unit[:1])
    ]
