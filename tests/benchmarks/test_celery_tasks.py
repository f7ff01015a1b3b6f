"""The Celery-like messages: the octets are those that Celery itself sent."""

from __future__ import annotations

import json
import random
from uuid import UUID

from pamqp import header

from benchmarks import celery_tasks
from benchmarks.celery_tasks import Task, task

# The header frame's property flags and list, and the body, of `send_invoice.delay(4711,
# "customer-17", note="x")`: Celery 5.7.0, kombu 5.7.0, py-amqp 5.4.2, an rpc:// result backend.
ID = b"58a317e7-d8c9-4c3a-ab98-7b95d46cf3bc"
PROPERTIES = (
    b"\xfe\x00\x10application/json\x05utf-8\x00\x00\x01v\x04langS\x00\x00\x00\x02py\x04taskS\x00"
    b"\x00\x00\x11shop.send_invoice\x02idS\x00\x00\x00$" + ID + b"\x06shadowV\x03etaV\x07expiresV"
    b"\x05groupV\x0bgroup_indexV\x07retriesI\x00\x00\x00\x00\ttimelimitA\x00\x00\x00\x02VV\x07root"
    b"_idS\x00\x00\x00$" + ID + b"\tparent_idV\x08argsreprS\x00\x00\x00\x15(4711, 'customer-17')\n"
    b"kwargsreprS\x00\x00\x00\r{'note': 'x'}\x06originS\x00\x00\x00\x0bgen27082@vm\rignore_resultt"
    b"\x00\x15replaced_task_nestingI\x00\x00\x00\x00\x0fstamped_headersV\x06stampsF\x00\x00\x00\x00"
    b"\x02\x00$" + ID + b"$9c03677a-4389-3c98-9115-6cd879632d95"
)
BODY = (
    b'[[4711, "customer-17"], {"note": "x"}, '
    b'{"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
)


def test_a_task_is_encoded_as_celery_encoded_it() -> None:
    one = Task(ID.decode(), "shop.send_invoice", (4711, "customer-17"), {"note": "x"})
    assert one.properties() == PROPERTIES
    assert one.body() == BODY


def test_tasks_differ_and_some_belong_to_a_group() -> None:
    chance = random.Random(1)
    tasks = [task(number, 300, chance) for number in range(400)]
    assert len({one.id for one in tasks}) == 400
    assert all(str(UUID(one.id)) == one.id for one in tasks)
    assert {one.name for one in tasks} == set(celery_tasks.NAMES)
    assert sum(one.group is not None for one in tasks) == 400 / celery_tasks.GROUPED_EVERY
    assert 250 < sum(len(one.body()) for one in tasks) / 400 < 350
    for one in tasks:
        properties = header.ContentHeader()
        # Twelve octets of class, weight and size stand before the properties.
        properties.unmarshal(bytes(12) + one.properties())
        headers = properties.properties.headers
        assert headers is not None
        assert headers["timelimit"] == [None, None] and headers["stamps"] == {}
        assert headers["root_id"] == (one.parent or one.id)
        assert headers["kwargsrepr"] == repr(json.loads(one.body())[1])
