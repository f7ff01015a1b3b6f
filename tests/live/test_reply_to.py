"""Direct reply-to: answers without a queue."""

from __future__ import annotations

from collections.abc import Callable

from pamqp.commands import Basic, Queue

from tests.live.conversation import (
    Case,
    Client,
    Talk,
    check,
    encode_content,
    refusal,
    table,
    unchecked,
)

Connect = Callable[..., Client]
REPLY = "amq.rabbitmq.reply-to"

REFUSALS = [
    Case(
        "consume with acknowledgements",
        [],
        Basic.Consume(queue=REPLY, no_ack=False),
        406,
        "PRECONDITION_FAILED - reply consumer cannot acknowledge",
    ),
    Case(
        "consume twice",
        [Basic.Consume(queue=REPLY, no_ack=True)],
        Basic.Consume(queue=REPLY, no_ack=True),
        406,
        "PRECONDITION_FAILED - reply consumer already set",
    ),
    Case(
        "publish without a consumer",
        [],
        [
            Basic.Publish(exchange="", routing_key="nowhere"),
            encode_content(1, b"", Basic.Properties(reply_to=REPLY)),
        ],
        406,
        "PRECONDITION_FAILED - fast reply consumer does not exist",
    ),
    Case(
        "passive declare of a dead name",
        [],
        Queue.Declare(queue=f"{REPLY}.g2dkAAh", passive=True),
        404,
        f"NOT_FOUND - no queue '{REPLY}.g2dkAAh' in vhost '/'",
    ),
    Case(
        "bind",
        [],
        Queue.Bind(queue=REPLY, exchange="amq.direct", routing_key="k"),
        404,
        f"NOT_FOUND - no queue '{REPLY}' in vhost '/'",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


def test_question_and_answer(connect: Connect) -> None:
    asker, answerer = connect().channel(), connect().channel()
    questions = answerer.queue()
    answerer.consume(questions, no_ack=True)
    tag = asker.consume(REPLY, no_ack=True)
    for number in range(3):
        asker.publish("", questions, b"?%d" % number, reply_to=REPLY, correlation_id="c")
        question = answerer.expect(Basic.Deliver)
        address = question.properties.reply_to
        assert address.startswith(REPLY + ".")
        answerer.publish("", address, b"!%d" % number, correlation_id="c")
        answer = asker.expect(
            Basic.Deliver, consumer_tag=tag, exchange="", routing_key=address, redelivered=False
        )
        assert (answer.body, answer.properties.correlation_id) == (b"!%d" % number, "c")


def test_base_name_exists(talk: Talk) -> None:
    reply = talk.call(Queue.Declare(queue=REPLY, passive=True))
    assert (reply.queue, reply.message_count, reply.consumer_count) == (REPLY, 0, 1)


def test_living_address_exists(connect: Connect) -> None:
    asker, answerer = connect().channel(), connect().channel()
    questions = answerer.queue()
    asker.consume(REPLY, no_ack=True)
    asker.publish("", questions, b"?", reply_to=REPLY)
    address = answerer.get_soon(questions, no_ack=True).properties.reply_to
    reply = answerer.call(unchecked(Queue.Declare, queue=address, passive=True))
    assert (reply.queue, reply.message_count, reply.consumer_count) == (address, 0, 1)
    asker.close()
    assert answerer.refused(unchecked(Queue.Declare, queue=address, passive=True)) == refusal(
        404, f"NOT_FOUND - no queue '{address}' in vhost '/'", Queue.Declare
    )


def test_answer_to_nobody_is_unroutable(connect: Connect) -> None:
    asker, answerer = connect().channel(), connect().channel()
    questions = answerer.queue()
    tag = asker.consume(REPLY, no_ack=True)
    asker.publish("", questions, b"?", reply_to=REPLY)
    address = answerer.get_soon(questions, no_ack=True).properties.reply_to
    asker.call(Basic.Cancel(tag))
    asker.close()
    answerer.confirm()
    answerer.publish("", address, b"!", mandatory=True)
    answerer.expect(Basic.Return, reply_code=312)
    answerer.expect(Basic.Ack)


def test_consumer_may_be_cancelled_and_set_again(talk: Talk) -> None:
    for _ in range(3):
        tag = talk.consume(REPLY, no_ack=True)
        talk.call(Basic.Cancel(tag))


def test_other_reply_to_is_left_alone(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x", reply_to="somewhere.else")
    assert talk.get_soon(queue).properties.reply_to == "somewhere.else"
