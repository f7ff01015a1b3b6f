"""Metrics for Prometheus, with RabbitMQ's names, and qlog's own."""
