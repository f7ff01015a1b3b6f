"""The broker: protocol core (amqp), rules (broker), sockets (net), composition (app)."""
