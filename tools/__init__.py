"""The command line: `qlog serve` and `qlog inspect`."""
