"""Messages out of a data directory into a file, and from a file into a running broker."""
