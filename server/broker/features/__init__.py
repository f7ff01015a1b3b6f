"""What RabbitMQ has beside plain queues: one file a feature, with its promise at the top."""
