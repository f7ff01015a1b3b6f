"""What a policy may say, with the texts of a RabbitMQ 4.0.5 that was asked (rabbit_policy:parse_set).

Where that one crashed instead of answering, the text is that of its successors; the table says so.
"""

from __future__ import annotations

import itertools
import time

import pytest

from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.patterns import (
    MATCH_S,
    STRIKES_MAX,
    InvalidPattern,
    Pattern,
)
from qlog.server.broker.features.policy import Policies, Policy, PolicyKind, check_policy
from qlog.server.broker.features.policy_keys import (
    DEDUPLICATION_KEYS,
    KEYS,
    OPERATOR_KEYS,
    merged,
)
from qlog.server.broker.features.terms import term

NOT = "is not a valid"
APPLY_TO = (
    "apply-to 'some' unrecognised; should be one of: 'queues', 'classic_queues',  "
    "'quorum_queues', 'streams', 'exchanges', or 'all'"
)
REFUSED: list[tuple[object, str]] = [
    ({}, "no policy provided"),
    ({"foo": 1}, '[{<<"foo">>,1}] are not recognised policy settings'),
    (
        {"foo": 1, "bar": "x", "message-ttl": 5},
        '[{<<"bar">>,<<"x">>},{<<"foo">>,1}] are not recognised policy settings',
    ),
    ({"ha-mode": "all"}, '[{<<"ha-mode">>,<<"all">>}] are not recognised policy settings'),
    ({"x-cache-size": 0}, '"x-cache-size" must be an integer greater than 0, got 0'),
    ({"x-cache-ttl": "1"}, '"x-cache-ttl" must be an integer greater than 0, got <<"1">>'),
    (
        {"x-cache-persistence": "ram"},
        '"x-cache-persistence" must be either "disk" or "memory", got <<"ram">>',
    ),
    ({"x-message-deduplication": 1}, '"x-message-deduplication" must be a boolean, got 1'),
    ({"message-ttl": -1}, f"-1 {NOT} message TTL"),
    ({"message-ttl": "a"}, f'<<"a">> {NOT} message TTL'),
    ({"message-ttl": 1.5}, f"1.5 {NOT} message TTL"),
    ({"message-ttl": True}, f"true {NOT} message TTL"),
    ({"message-ttl": None}, f"null {NOT} message TTL"),
    ({"message-ttl": [1, "a"]}, f'[1,<<"a">>] {NOT} message TTL'),
    ({"message-ttl": {"a": 1, "b": []}}, f'#{{<<"a">> => 1,<<"b">> => []}} {NOT} message TTL'),
    ({"expires": 0}, f"0 {NOT} queue expiry"),
    ({"max-length": -1}, f"-1 {NOT} maximum length"),
    ({"max-length-bytes": -1}, f"-1 {NOT} maximum length in bytes"),
    ({"max-in-memory-length": -1}, f"-1 {NOT} maximum memory in bytes"),
    ({"max-in-memory-bytes": -1}, f"-1 {NOT} maximum memory in bytes"),
    ({"alternate-exchange": 1}, f"1 {NOT} alternate exchange name"),
    ({"consumer-timeout": -1}, f"-1 {NOT} consumer timeout"),
    ({"dead-letter-exchange": 1}, f"1 {NOT} dead letter exchange name"),
    ({"dead-letter-routing-key": 1}, f"1 {NOT} dead letter routing key"),
    ({"dead-letter-strategy": "k"}, f'<<"k">> {NOT} dead letter strategy'),
    ({"queue-mode": "k"}, f'<<"k">> {NOT} queue-mode value'),
    ({"queue-version": 3}, f"3 {NOT} queue-version value"),
    ({"overflow": "k"}, f'<<"k">> {NOT} overflow value'),
    ({"delivery-limit": "k"}, f'<<"k">> {NOT} delivery limit'),
    ({"max-age": "k"}, f'<<"k">> {NOT} max age'),  # 4.0.5 crashes
    ({"max-age": 5}, f"5 {NOT} max age"),  # 4.0.5 crashes
    ({"queue-leader-locator": "5Y"}, f'<<"5Y">> {NOT} queue leader locator value'),
    ({"initial-cluster-size": -1}, f"-1 {NOT} cluster size"),
    ({"stream-max-segment-size-bytes": -1}, f"-1 {NOT} segment size"),
    ({"stream-max-segment-size-bytes": 99999999999}, f"99999999999 {NOT} segment size"),
    ({"stream-filter-size-bytes": 5}, f"5 {NOT} filter size. Valid range is 16-255"),
    ({"target-group-size": 0}, f"0 {NOT} qq target count value"),
    ({"message-ttl": -1, "expires": 0, "max-length": "x"}, f"0 {NOT} queue expiry"),
    ({"message-ttl": -1, "foo": 1}, f"-1 {NOT} message TTL"),
    (
        None,
        "parse error while reading policy definition: null. Validator: policy_validator.",
    ),
]
OPERATOR_REFUSED: list[tuple[object, str]] = [
    (
        {"dead-letter-exchange": "x"},
        '[{<<"dead-letter-exchange">>,<<"x">>}] are not recognised policy settings',
    ),
    ({"queue-mode": "lazy"}, '[{<<"queue-mode">>,<<"lazy">>}] are not recognised policy settings'),
    ({"message-ttl": -1}, f"-1 {NOT} message TTL"),
    ({"target-group-size": 0}, f"0 {NOT} qq target count value"),
]


def refusal(
    definition: object,
    kind: PolicyKind = "policy",
    pattern: object = "^p",
    priority: object = 0,
    apply_to: object = "all",
) -> str:
    with pytest.raises(InvalidParameter) as refused:
        check_policy(kind, "p", pattern, definition, priority, apply_to)
    text = str(refused.value)
    assert text.startswith("Validation failed\n\n") and text.endswith("\n")
    return text.removeprefix("Validation failed\n\n").removesuffix("\n")


@pytest.mark.parametrize(("definition", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_impossible_definitions_are_refused_in_rabbitmqs_words(
    definition: object, text: str
) -> None:
    assert refusal(definition) == text


@pytest.mark.parametrize(
    ("definition", "text"), OPERATOR_REFUSED, ids=[text for _, text in OPERATOR_REFUSED]
)
def test_operator_policies_know_fewer_keys(definition: object, text: str) -> None:
    assert refusal(definition, "operator_policy") == text


def test_all_complaints_are_named_at_once_the_last_first() -> None:
    assert refusal({"foo": 1}, pattern=5, priority="x", apply_to="some").split("\n") == [
        '[{<<"foo">>,1}] are not recognised policy settings',
        APPLY_TO,
        "pattern should be a binary but was 5",
        'priority should be a number, actually was <<"x">>',
    ]


@pytest.mark.parametrize("priority", [True, None, float("nan"), [1]])
def test_priority_is_a_number(priority: object) -> None:
    text = refusal({"expires": 1}, priority=priority)
    assert text == f"priority should be a number, actually was {term(priority)}"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^po(lx", 'pattern should be regular expression but is invalid: {"missing )",6}'),
        ("*polx", 'pattern should be regular expression but is invalid: {"nothing to repeat",0}'),
        ("a" * 1025, "pattern must not exceed 1024 bytes"),
        ("ä" * 600, "pattern must not exceed 1024 bytes"),
    ],
)
def test_patterns_that_do_not_compile_are_refused(pattern: str, text: str) -> None:
    assert refusal({"expires": 1}, pattern=pattern) == text


@pytest.mark.parametrize(
    "pattern",
    [
        "[polx",
        "(?<n>",
        "a{2,1}",
        "\\",
        "(?P<a>x)(?P<a>",
        "\udc80",
        "(" * 900,
        "(?:" * 200 + ")" * 200,
    ],
)
def test_broken_patterns_are_refused_whatever_breaks_them(pattern: str) -> None:
    try:
        check_policy("policy", "p", pattern, {"expires": 1}, 0, "all")
    except InvalidParameter as refused:
        assert "pattern " in str(refused)
    else:
        assert pattern.endswith(")")  # deep, but balanced


# --- what is allowed


GOOD: dict[str, list[object]] = {
    "alternate-exchange": ["", "ae"],
    "consumer-timeout": [0, 10**12],
    "consumer-timeout-action": ["close", "requeue"],
    "dead-letter-exchange": ["", "dlx"],
    "dead-letter-routing-key": ["k"],
    "dead-letter-strategy": ["at-most-once", "at-least-once"],
    "delayed-retry-max": [1],
    "delayed-retry-min": [1],
    "delayed-retry-type": ["all", "failed", "returned", "disabled"],
    "delivery-limit": [-1, 0, 5],
    "expires": [1, 10**30],
    "initial-cluster-size": [0],
    "max-age": ["5Y", "10D", "0s"],
    "max-in-memory-bytes": [0],
    "max-in-memory-length": [0],
    "max-length": [0, 1],
    "max-length-bytes": [0],
    "message-ttl": [0, 99999999999999],
    "overflow": ["drop-head", "reject-publish", "reject-publish-dlx"],
    "queue-leader-locator": ["client-local", "balanced", "random", "least-leaders"],
    "queue-master-locator": ["min-masters"],
    "queue-mode": ["lazy", "default"],
    "queue-version": [1, 2],
    "stream-filter-size-bytes": [16, 255],
    "stream-max-segment-size-bytes": [0, 3_000_000_000],
    "target-group-size": [1],
    "x-cache-persistence": ["disk", "memory"],
    "x-cache-size": [1],
    "x-cache-ttl": [1],
    "x-message-deduplication": [True, False],
}


def test_every_key_takes_its_values() -> None:
    assert GOOD.keys() == KEYS.keys() | DEDUPLICATION_KEYS.keys()
    for key, values in GOOD.items():
        for value in values:
            policy = check_policy("policy", "p", ".*", {key: value}, 0, "all")
            assert policy.definition == {key: value}
            if key in OPERATOR_KEYS:
                check_policy("operator_policy", "p", ".*", {key: value}, 1.5, "queues")


# --- which policy applies


def policies(*given: tuple[PolicyKind, Policy]) -> Policies:
    result = Policies()
    for kind, policy in given:
        result.put(kind, policy)
    return result


TTL = {"message-ttl": 5}


def test_highest_priority_applies_and_no_other() -> None:
    found = policies(
        ("policy", Policy("low", "^q", {"expires": 1}, 0)),
        ("policy", Policy("high", "1$", TTL, 7)),
        ("policy", Policy("half", "2$", TTL, 0.5)),
        ("policy", Policy("also-low", "^q", {"expires": 2}, 0)),
    )
    assert found.for_queue("q1", "classic").policy == "high"
    assert found.for_queue("q1", "classic").definition == TTL
    assert found.for_queue("q2", "classic").policy == "half"
    assert found.for_queue("q3", "classic").policy == "also-low"
    assert found.for_queue("x3", "classic").policy is None
    assert [policy.name for policy in found.all("policy")] == ["high", "half", "also-low", "low"]
    found.remove("policy", "high")
    assert found.for_queue("q1", "classic").policy == "also-low"


def test_a_pattern_that_is_valid_no_more_applies_to_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may have been accepted by another version of the library."""
    found = policies(("policy", Policy("p", "(", TTL)), ("policy", Policy("q", "", TTL, -1)))
    assert found.for_queue("a", "classic").policy == "q"
    assert "policy 'p' applies to nothing: its pattern should be regular expression" in caplog.text


THINGS = ("classic", "quorum", "stream", "exchange")


@pytest.mark.parametrize(
    ("apply_to", "definition", "things"),
    [
        ("all", {"alternate-exchange": "x"}, THINGS),
        ("queues", {"max-length-bytes": 1}, ("classic", "quorum", "stream")),
        ("classic_queues", {"max-length-bytes": 1}, ("classic",)),
        ("quorum_queues", {"max-length-bytes": 1}, ("quorum",)),
        ("streams", {"max-length-bytes": 1}, ("stream",)),
        ("exchanges", {"alternate-exchange": "x"}, ("exchange",)),
        # A key that a type does not support keeps the whole policy from it.
        ("all", {"delivery-limit": 1, "expires": 5}, ("quorum", "exchange")),
        ("all", {"dead-letter-strategy": "at-most-once"}, ("quorum", "exchange")),
        ("all", {"max-in-memory-length": 1}, ("quorum", "exchange")),
        ("queues", {"max-age": "1D"}, ("stream",)),
        ("queues", {"queue-mode": "lazy"}, ("classic",)),
        ("queues", {"message-ttl": 1}, ("classic", "quorum")),
        ("queues", {"overflow": "drop-head"}, ("classic", "quorum")),
        ("classic_queues", {"delivery-limit": 1}, ()),
    ],
)
def test_policies_apply_to_types(
    apply_to: str, definition: dict[str, object], things: tuple[str, ...]
) -> None:
    found = policies(("policy", Policy("p", "", definition, 0, apply_to)))
    applies = [
        thing
        for thing in THINGS
        if (found.for_exchange("n") if thing == "exchange" else found.for_queue("n", thing)).policy
    ]
    assert applies == list(things)


@pytest.mark.parametrize(
    ("policy", "operator_policy", "effective"),
    [
        *(
            ({key: mine}, {key: theirs}, {key: min(mine, theirs)})
            for key in ("message-ttl", "expires", "max-length", "max-length-bytes")
            for mine, theirs in ((5, 9), (9, 5))
        ),
        ({"max-in-memory-length": 3}, {"max-in-memory-length": 4}, {"max-in-memory-length": 3}),
        ({"max-in-memory-bytes": 3}, {"max-in-memory-bytes": 4}, {"max-in-memory-bytes": 3}),
        ({"delivery-limit": 3}, {"delivery-limit": 4}, {"delivery-limit": 3}),
        ({"delivery-limit": -1}, {"delivery-limit": 4}, {"delivery-limit": 4}),
        ({"delivery-limit": 7}, {"delivery-limit": -5}, {"delivery-limit": 7}),
        ({"delivery-limit": -1}, {"delivery-limit": -5}, {"delivery-limit": -1}),
        ({"queue-version": 1}, {"queue-version": 2}, {"queue-version": 2}),
        ({"overflow": "drop-head"}, {"overflow": "reject-publish"}, {"overflow": "reject-publish"}),
        ({"target-group-size": 3}, {"target-group-size": 5}, {"target-group-size": 5}),
        ({"message-ttl": 1}, {"expires": 2}, {"message-ttl": 1, "expires": 2}),
        ({"queue-mode": "lazy"}, {"expires": 2}, {"queue-mode": "lazy", "expires": 2}),
    ],
)
def test_operator_policies_are_merged(
    policy: dict[str, object], operator_policy: dict[str, object], effective: dict[str, object]
) -> None:
    assert merged(policy, operator_policy) == effective
    assert merged(policy, None) == policy
    assert merged(None, operator_policy) == operator_policy
    found = policies(
        ("policy", Policy("p", "", policy)), ("operator_policy", Policy("o", "", operator_policy))
    )
    applied = found.for_queue("q", "quorum")
    if applied.policy is not None:
        assert (applied.policy, applied.operator_policy) == ("p", "o")
        assert applied.definition == effective
    assert found.for_queue("r", "quorum") is applied  # shared


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        ("", ["", "q"], []),
        (".*", ["", "q", "ä"], []),
        ("^(?!amq\\.).*", ["q", "xamq.y"], ["amq.gen-1"]),
        ("^(?!amq\\.|celery).+$", ["q"], ["amq.x", "celery@1", ""]),
        ("^q(?=\\d)", ["q1"], ["q", "qx"]),
        ("(?<=a)b(?<!ab)", [], ["ab", "b"]),
        ("(?i)^QUEUE", ["queue", "QUEUE"], ["a queue"]),
        ("^(?>a+)b", ["aab"], ["aac"]),
        ("^a++a", [], ["aaa"]),
        ("^(?P<x>..)(?P=x)$", ["abab"], ["abac"]),
        ("^(?<x>..)\\1$", ["abab"], ["abac"]),
        ("^\\((?R)?\\)|^\\d", ["()", "1"], ["x"]),
        ("^[[:alpha:]]+$", ["abc"], ["ab1"]),
        ("^\\w+$", ["abc_1"], ["ä"]),  # octets, as in RabbitMQ
        ("^..$", ["ab", "ä"], ["a"]),
        ("^ä", ["äö"], ["a"]),
        ("^a(?#comment)b$", ["ab"], []),
        ("^\\x61\\.b", ["a.b"], ["axb"]),
        ("\\Aq\\z|\\Ar\\Z", ["q", "r"], ["qq"]),
        ("^\\\\z", ["\\z"], ["", "z"]),
    ],
)
def test_pcres_common_syntax(pattern: str, found: list[str], not_found: list[str]) -> None:
    compiled = Pattern(pattern, "policy 'p'")
    compiled.try_hard_names()
    assert [name for name in found + not_found if compiled.matches(name)] == found


SLOW = [
    "(a+)+$",
    "(a|aa)+$",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    "(x+x+)+y",
    "(a?){200}a{200}",
]


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_could_stall_the_broker_are_refused(pattern: str) -> None:
    text = refusal({"expires": 1}, pattern=pattern)
    assert text.startswith("pattern takes too long to match: more than 2 ms for a name such as")


@pytest.mark.parametrize("pattern", SLOW)
def test_a_match_has_a_limit_of_time(pattern: str) -> None:
    """Measured in processor time, which the limit is about: the machine may be busy."""
    compiled = Pattern(pattern, "policy 'p'")
    for unit, end in itertools.product(("a", "ab", "x", "q", "a "), ("", "!")):
        begin_s = time.process_time()
        compiled.matches((unit * 255)[:254] + end)
        assert time.process_time() - begin_s < 20 * MATCH_S


def test_slow_names_are_not_matched_and_then_nothing_is(caplog: pytest.LogCaptureFixture) -> None:
    compiled = Pattern("(x+x+)+y", "policy 'p'")
    assert compiled.matches("xxxy")
    for _ in range(STRIKES_MAX):
        assert not compiled.matches("x" * 200)
    assert not compiled.matches("xxxy")
    assert "policy 'p' does not match 'xxx" in caplog.text
    assert caplog.text.count("policy 'p' matches nothing any more") == 1
    assert len(caplog.records) == STRIKES_MAX + 1
    with pytest.raises(InvalidPattern):
        compiled.try_hard_names()
