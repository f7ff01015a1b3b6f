"""Routing as the rules state it, without a thought for speed: what the real one is held against."""

from collections.abc import Iterable, Mapping, Sequence

from qlog.routing import Binding, Exchange


def topic_matches(pattern: str, key: str) -> bool:
    def go(pattern: Sequence[str], words: Sequence[str]) -> bool:
        if not pattern:
            return not words
        if pattern[0] == "#":
            return any(go(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
        return bool(words) and pattern[0] in ("*", words[0]) and go(pattern[1:], words[1:])

    return go(pattern.split(".") if pattern else [], key.split(".") if key else [])


def headers_match(arguments: Mapping[str, object], headers: Mapping[str, object]) -> bool:
    """For string values only."""
    x_match = str(arguments.get("x-match", "all"))
    outcomes = [
        key in headers and value in (None, headers[key])
        for key, value in arguments.items()
        if key != "x-match" and (x_match.endswith("with-x") or not key.startswith("x-"))
    ]
    return all(outcomes) if x_match.startswith("all") else any(outcomes)


def binding_matches(
    binding: Binding, type_name: str, keys: Sequence[str], headers: Mapping[str, object]
) -> bool:
    match type_name:
        case "direct":
            return binding.routing_key in keys
        case "fanout":
            return True
        case "topic":
            return any(topic_matches(binding.routing_key, key) for key in keys)
        case "headers":
            return headers_match(binding.arguments, headers)
    raise AssertionError(type_name)


def route(
    exchanges: Mapping[str, Exchange],
    bindings: Iterable[Binding],
    start: str,
    keys: Sequence[str],
    headers: Mapping[str, object],
) -> tuple[set[str], bool]:
    """Return the queues reached, and whether no headers exchange was reached."""
    bindings = list(bindings)
    queues: set[str] = set()
    reached = {start}
    while True:
        before = len(reached)
        for name in list(reached):
            exchange = exchanges[name]
            matching = [
                binding
                for binding in bindings
                if binding.source == name and binding_matches(binding, exchange.type, keys, headers)
            ]
            queues |= {b.destination for b in matching if b.kind == "queue"}
            reached |= {b.destination for b in matching if b.kind == "exchange"}
            alternate = exchange.arguments.get("alternate-exchange")
            if not matching and isinstance(alternate, str) and alternate in exchanges:
                reached.add(alternate)
        if len(reached) == before:
            return queues, all(exchanges[name].type != "headers" for name in reached)
