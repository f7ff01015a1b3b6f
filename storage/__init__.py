"""Durable bytes: the log, its index, the ack ledger and the catalog. Knows no AMQP and no trio."""
