"""Queues: what is ready, who gets it, where a message goes, and their arguments."""
