"""What there is, as operators see it: values of JSON with RabbitMQ's names, one object at a time."""
