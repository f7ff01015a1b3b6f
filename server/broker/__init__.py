"""The rules of the broker, synchronous: no trio, no socket, no clock but the one passed in."""
