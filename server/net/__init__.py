"""trio: listeners, sessions, and the bridge to the disk."""
