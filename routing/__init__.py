"""Which queues a message goes to: names in, names out. Pure."""
