"""Forms of commands, in groups, each of which begins and ends without anything of its own.

They are run against RabbitMQ (record.py), and in tests against qlog. What is compared is said by
`normal`: names of nodes, process ids and ports differ, and the order of a listing does not matter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika

VHOST = "ctl-v"
# Other people's objects may be listed, too, where a command lists all there are.
GLOBAL = ("list_users", "list_vhosts", "list_vhost_limits --global", "list_user_limits --global")

USERS = r"""
add_user ctl-u secret
add_user ctl-u secret
add_user
add_user ctl-a b c
add_user ctl-bad nothash --pre-hashed-password
add_user ctl-h +6Wm/Kq+3eORwyauMOMMZLSgJDju3pu6tKBxmNUZvpt9ishp --pre-hashed-password
add_user ctl-e ""
add_user ctl-j x --formatter json
authenticate_user ctl-u secret
authenticate_user ctl-h foo
authenticate_user ctl-u wrong
authenticate_user ctl-nobody wrong
change_password ctl-u new
authenticate_user ctl-u new
change_password ctl-nobody x
set_user_tags ctl-u monitoring policymaker
set_user_tags ctl-nobody x
set_user_tags
list_users
list_users --formatter json
list_users --formatter=csv
-q list_users
-s list_users
list_users --no-table-headers
list_users extra
authenticate_user ctl-u new
clear_password ctl-u
authenticate_user ctl-u new
clear_password ctl-nobody
set_user_limits ctl-u '{"max-connections": 5, "max-channels": 7}'
set_user_limits ctl-u nojson
set_user_limits ctl-u '{"max-nosuch": 5}'
set_user_limits ctl-nobody '{"max-connections": 5}'
list_user_limits --user ctl-u
list_user_limits --user ctl-u --formatter json
list_user_limits --global
list_user_limits --user ctl-nobody
clear_user_limits ctl-u max-channels
list_user_limits --user ctl-u
clear_user_limits ctl-u all
list_user_limits --user ctl-u
clear_user_limits ctl-u nosuch
clear_user_limits ctl-nobody all
set_user_tags ctl-u
delete_user ctl-u
delete_user ctl-u
delete_user ctl-h --formatter json
delete_user ctl-e
delete_user ctl-j
delete_user
"""

PERMISSIONS = r"""
add_vhost ctl-v
add_user ctl-u secret
set_permissions -p ctl-v ctl-u '^ctl' '.*' ''
set_permissions -p ctl-v ctl-u '(' '.*' ''
set_permissions -p ctl-nosuch ctl-u '.*' '.*' '.*'
set_permissions -p ctl-v ctl-nobody '.*' '.*' '.*'
set_permissions -p ctl-v ctl-u '.*' '.*'
list_permissions -p ctl-v
list_permissions -p ctl-v --formatter json
list_permissions -p ctl-nosuch
list_user_permissions ctl-u
list_user_permissions --no-table-headers ctl-u
list_user_permissions ctl-nobody
set_topic_permissions -p ctl-v ctl-u amq.topic '^a' '^b'
set_topic_permissions -p ctl-v ctl-u amq.topic '(' '^b'
set_topic_permissions -p ctl-v ctl-nobody amq.topic '^a' '^b'
list_topic_permissions -p ctl-v
list_topic_permissions -p ctl-nosuch
list_user_topic_permissions ctl-u
list_user_topic_permissions ctl-nobody
clear_topic_permissions -p ctl-v ctl-u amq.topic
list_topic_permissions -p ctl-v
clear_topic_permissions -p ctl-v ctl-u
clear_topic_permissions -p ctl-v ctl-nobody
clear_permissions -p ctl-v ctl-u
list_permissions -p ctl-v
clear_permissions -p ctl-v ctl-nobody
clear_permissions -p ctl-nosuch ctl-u
set_permissions_globally ctl-nobody a b c
delete_user ctl-u
delete_vhost ctl-v
"""

VHOSTS = r"""
add_vhost ctl-v
add_vhost ctl-v
add_vhost ctl-w --description 'my words' --tags a,b --default-queue-type quorum
add_vhost
list_vhosts name tags description default_queue_type tracing
list_vhosts name tags description default_queue_type tracing --formatter json
list_vhosts nosuch
update_vhost_metadata ctl-w --description new
update_vhost_metadata ctl-nosuch --description new
update_vhost_metadata ctl-w
update_vhost_metadata ctl-w --default-queue-type nosuch
set_vhost_tags ctl-w c d
set_vhost_tags ctl-nosuch c
list_vhosts name tags description default_queue_type
set_vhost_limits -p ctl-v '{"max-connections": 64, "max-queues": 5}'
set_vhost_limits -p ctl-v '{"nosuch": 64}'
set_vhost_limits -p ctl-v nojson
set_vhost_limits -p ctl-nosuch '{"max-connections": 64}'
set_vhost_limits -p ctl-v
list_vhost_limits -p ctl-v
list_vhost_limits -p ctl-w
list_vhost_limits -p ctl-nosuch
list_vhost_limits --global
list_vhost_limits --global --formatter json
clear_vhost_limits -p ctl-v
list_vhost_limits -p ctl-v
clear_vhost_limits -p ctl-nosuch
trace_on -p ctl-w
list_vhosts name tracing tags
trace_off -p ctl-w
restart_vhost -p ctl-w
delete_vhost ctl-w
delete_vhost ctl-w
delete_vhost ctl-v
"""

POLICIES = r"""
add_vhost ctl-v
set_policy -p ctl-v p1 ^c1 '{"max-length": 100, "overflow":"reject-publish"}' --priority 5 --apply-to queues
set_policy -p ctl-v p2 .* '{"alternate-exchange":"amq.fanout"}' --apply-to exchanges
set_policy -p ctl-v p3 .* '{"alternate-exchange":'
set_policy -p ctl-v p3 .* '{"nosuch":1}'
set_policy -p ctl-v p3 '(' '{"max-length":1}'
set_policy -p ctl-v p3 .* '{"max-length":1}' --priority x
set_policy -p ctl-v p3 .* '{"max-length":1}' --apply-to nosuch
set_policy -p ctl-nosuch p3 .* '{"max-length":1}'
set_policy -p ctl-v p3 .*
list_policies -p ctl-v
list_policies -p ctl-v --formatter json
list_policies -p ctl-v extra
list_policies -p ctl-nosuch
clear_policy -p ctl-v p2
clear_policy -p ctl-v nosuch
clear_policy -p ctl-nosuch p2
set_operator_policy -p ctl-v o1 .* '{"max-length": 50}' --priority 1 --apply-to queues
set_operator_policy -p ctl-v o2 .* '{"alternate-exchange": "x"}'
list_operator_policies -p ctl-v
list_operator_policies -p ctl-nosuch
clear_operator_policy -p ctl-v o1
clear_operator_policy -p ctl-v o1
set_parameter -p ctl-v vhost-limits limits '{"max-connections": 5}'
set_parameter -p ctl-v nosuch limits '{"max-connections": 5}'
set_parameter -p ctl-v vhost-limits limits '{"max-connections": '
list_parameters -p ctl-v
list_parameters -p ctl-v --formatter json
clear_parameter -p ctl-v vhost-limits limits
clear_parameter -p ctl-v vhost-limits limits
clear_parameter -p ctl-v nosuch limits
set_global_parameter ctl-g '{"a": [1, "b"]}'
set_global_parameter ctl-g a
clear_global_parameter ctl-g
clear_global_parameter ctl-g
delete_vhost ctl-v
"""

OBJECTS = r"""
list_queues -p ctl-v
list_queues -p ctl-v name arguments auto_delete durable effective_policy_definition exclusive state type policy operator_policy messages messages_ready messages_unacknowledged head_message_timestamp
list_queues -p ctl-v name arguments auto_delete durable effective_policy_definition exclusive leader members state type policy messages --formatter json
list_queues -p ctl-v name arguments --formatter csv
list_queues -p ctl-v name,messages
list_queues -p ctl-v --online
list_queues -p ctl-v --offline
list_queues -p ctl-v --local name
list_queues -p ctl-v -t 5 name
list_queues -p ctl-nosuch
list_queues -p ctl-w name
list_queues -p ctl-w name --formatter json
list_queues -p ctl-w name --formatter csv
list_queues nosuch
-q list_queues -p ctl-v name messages_ready messages_unacknowledged --no-table-headers
-s list_queues -p ctl-v name messages
list_exchanges -p ctl-v
list_exchanges -p ctl-v name type durable auto_delete internal arguments policy
list_exchanges -p ctl-v name type durable auto_delete internal arguments policy --formatter json
list_exchanges -p ctl-v nosuch
list_exchanges -p ctl-nosuch
list_bindings -p ctl-v
list_bindings -p ctl-v source_name destination_name routing_key --formatter json
list_bindings -p ctl-v --formatter json
list_bindings -p ctl-nosuch
list_consumers -p ctl-v queue_name consumer_tag ack_required prefetch_count active activity_status arguments
list_consumers -p ctl-v queue_name consumer_tag ack_required prefetch_count active arguments --formatter json
list_consumers -p ctl-v
list_consumers -p ctl-nosuch
list_connections nosuch
list_channels nosuch
purge_queue -p ctl-v c1
purge_queue -p ctl-v nosuch
purge_queue -p ctl-nosuch c1
purge_queue -p ctl-v c1 --formatter json
delete_queue -p ctl-v nosuch
delete_queue -p ctl-nosuch c1
delete_queue -p ctl-v c1 --if-unused
delete_queue -p ctl-v q1 --if-empty
delete_queue -p ctl-v c2 --if-empty
delete_queue -p ctl-v c3 -u --formatter json
delete_queue -p ctl-v c1
delete_queue
close_connection nosuch because
close_connection one
close_all_user_connections ctl-nobody because
close_all_connections
close_all_connections --vhost ctl-nosuch because
close_all_connections -p ctl-v because
"""

USAGE = r"""
list_vhosts --nosuch
list_vhosts --formatter
list_vhosts -t x
list_vhosts -p
add_user ctl-zz pw -p
list_user_limits ctl-u --user ctl-u
lst_queues
set_vm_memory_high_watermark x
set_vm_memory_high_watermark 1.5
set_vm_memory_high_watermark
set_vm_memory_high_watermark absolute
set_vm_memory_high_watermark absolute x
set_vm_memory_high_watermark relative x
set_disk_free_limit x
set_disk_free_limit mem_relative x
set_disk_free_limit
set_cluster_name
set_log_level nosuch
enable_feature_flag nosuch
export_definitions
import_definitions /nosuch.json
stop_app --nosuch
suspend_listeners extra
report --formatter json
eval 'foo('
eval '1 + 2.'
autocomplete list_v
autocomplete
"""

NODE = r"""
ping
-q ping
ping --formatter json
ping -t 5
await_startup
await_online_nodes 1
await_online_nodes x
enable_feature_flag all
set_log_level info
list_unresponsive_queues -p /
force_gc
reconcile_vhosts
node_health_check
rotate_logs
diagnostics ping
diagnostics -q ping
diagnostics check_running
diagnostics check_running --formatter json
diagnostics check_port_listener x
diagnostics check_protocol_listener amqp
diagnostics check_protocol_listener nosuch
diagnostics check_virtual_hosts
diagnostics check_alarms
diagnostics check_local_alarms
diagnostics -q check_local_alarms
diagnostics is_running
diagnostics is_booting
diagnostics alarms
diagnostics check_if_node_is_quorum_critical
diagnostics check_certificate_expiration --unit days --within 5
diagnostics list_users --nosuch
queues check_if_node_is_quorum_critical
queues quorum_status nosuch
plugins is_enabled rabbitmq_management
plugins is_enabled
"""


@contextmanager
def _objects(url: str) -> Iterator[None]:
    """Queues, exchanges, bindings and consumers, of one client."""
    connection = pika.BlockingConnection(pika.URLParameters(f"{url}{VHOST}"))
    channel: Any = connection.channel()
    classic = {"x-queue-type": "classic"}
    channel.queue_declare("c1", durable=True, arguments={"x-max-length": 10, **classic})
    channel.queue_declare("q1", durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_declare("excl", exclusive=True)
    channel.queue_declare("c2", durable=True, arguments={"x-max-priority": 3, **classic})
    channel.queue_declare("c3", durable=True, auto_delete=True, arguments=classic)
    alternate = {"alternate-exchange": "amq.fanout"}
    channel.exchange_declare("e1", "topic", durable=True, arguments=alternate)
    channel.exchange_declare("e2", "headers", auto_delete=True, internal=True)
    channel.queue_bind("c1", "e1", "a.#")
    headers = {"n": 5, "s": "t", "x-match": "all"}
    channel.queue_bind("c1", "amq.headers", "", arguments=headers)
    channel.exchange_bind("e2", "e1", "k")
    channel.confirm_delivery()
    for number in range(3):
        properties = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("", "c1", str(number).encode(), properties)
    channel.basic_qos(prefetch_count=7)
    channel.basic_consume("q1", _nothing, consumer_tag="ct1", arguments={"x-priority": 3})
    channel.basic_consume("c1", _nothing, consumer_tag="ct2", exclusive=True)
    connection.process_data_events(0.2)
    try:
        yield
    finally:
        if connection.is_open:
            try:
                connection.close()
            except pika.exceptions.AMQPError:
                pass  # a form has closed it


def _nothing(*args: object) -> None:
    """Messages stay unacknowledged."""


@contextmanager
def _plain(url: str) -> Iterator[None]:
    yield


# What is there before a group, and after it: commands.
_BEFORE = {
    "objects": (
        "add_vhost ctl-v",
        "add_vhost ctl-w",
        "set_permissions -p ctl-v guest .* .* .*",
        'set_policy -p ctl-v p1 ^c1 \'{"max-length": 100, "overflow": "reject-publish"}\'',
    )
}
_AFTER = {"objects": ("delete_vhost ctl-v", "delete_vhost ctl-w")}
GROUPS: dict[str, str] = {
    "users": USERS,
    "permissions": PERMISSIONS,
    "vhosts": VHOSTS,
    "policies": POLICIES,
    "objects": OBJECTS,
    "usage": USAGE,
    "node": NODE,
}

# Runs a tool's command: exit status, stdout, stderr.
Run = Callable[[str, list[str]], tuple[int, str, str]]


def run_group(name: str, run: Run, url: str) -> Iterator[tuple[str, int, str, str]]:
    """Each form of a group with what it came to. `url` is AMQP's, up to the vhost."""
    for form in _BEFORE.get(name, ()):
        status, out, err = _run(run, form)
        assert status == 0, (form, out, err)
    with (_objects if name == "objects" else _plain)(url):
        for form in GROUPS[name].strip().splitlines():
            status, out, err = _run(run, form)
            yield form, status, normal(form, out), normal(form, err)
    for form in _AFTER.get(name, ()):
        _run(run, form)


def _run(run: Run, form: str) -> tuple[int, str, str]:
    words = shlex.split(form)
    tool = "ctl"
    if words[0] in ("diagnostics", "queues", "plugins"):
        tool = words.pop(0)
    return run(tool, words)


_PID = re.compile(r"<[^<>\s]*\.\d+\.\d+\.\d+>")
_PORTS = re.compile(r"(ports|protocols): [a-z0-9/, ]+|dependencies: [a-z0-9_, ]+")


def normal(form: str, text: str) -> str:
    """The text without what differs from broker to broker."""
    lines = [line.removeprefix(",") for line in text.rstrip("\n").split("\n")]
    if any(name in form for name in GLOBAL):
        lines = [line for line in lines if "ctl-" in line or "[" not in line or line == "["]
    lines = [_PORTS.sub("LISTED", _PID.sub("PID", line)) for line in lines]
    if "list_" in form and not any(line.startswith("Error") for line in lines):
        lines = sorted(lines)
    return "\n".join(lines).strip("\n")
