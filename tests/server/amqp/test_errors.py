"""Errors: codes, scopes, and reply texts that fit."""

from collections.abc import Callable

import pytest

from qlog.server.amqp import errors
from qlog.server.amqp.errors import AMQPError, HardError, SoftError


@pytest.mark.parametrize(
    ("make", "code", "scope"),
    [
        (errors.access_refused, 403, SoftError),
        (errors.not_found, 404, SoftError),
        (errors.resource_locked, 405, SoftError),
        (errors.precondition_failed, 406, SoftError),
        (errors.connection_forced, 320, HardError),
        (errors.login_refused, 403, HardError),
        (errors.frame_error, 501, HardError),
        (errors.syntax_error, 502, HardError),
        (errors.command_invalid, 503, HardError),
        (errors.channel_error, 504, HardError),
        (errors.unexpected_frame, 505, HardError),
        (errors.not_allowed, 530, HardError),
        (errors.not_implemented, 540, HardError),
        (errors.internal_error, 541, HardError),
    ],
)
def test_codes_and_scopes(
    make: Callable[[str, int, int], AMQPError], code: int, scope: type[AMQPError]
) -> None:
    error = make("why", 50, 10)
    assert type(error) is scope
    assert (error.code, error.class_id, error.method_id) == (code, 50, 10)
    assert error.reply_text == f"{error.name} - why"


def test_reply_texts_are_cut_between_characters() -> None:
    reply = errors.not_found("é" * 300).reply_text
    assert len(reply.encode()) in (254, 255)
    assert reply.endswith("é")


def test_an_error_without_text_has_only_its_name() -> None:
    assert errors.internal_error().reply_text == "INTERNAL_ERROR"


def test_surrogates_in_a_text_do_no_harm() -> None:
    assert errors.not_found("no queue '\udcff'").reply_text == "NOT_FOUND - no queue '?'"
