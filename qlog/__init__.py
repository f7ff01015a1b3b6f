"""qlog: a durable message broker that speaks AMQP 0-9-1."""

__version__ = "0.2.0"
