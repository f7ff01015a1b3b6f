"""`qlog ctl`: what operators ask of a running broker, with rabbitmqctl's commands and texts.

A command is a row of a table (command.py): its name, arguments, options, columns, texts and what
it asks of the management API, which the broker serves on a socket in its data directory (api.py).
Promises the texts, columns and exit statuses of RabbitMQ 4.0, and a start within a quarter of a
second: nothing here imports more than a few modules of the standard library.
"""
