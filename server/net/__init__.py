"""Sockets: listeners, sessions, and the loop that all of them and the disk's results share."""
