"""Each command of `qlog inspect`: what it asks for, and what it shows. One file a command."""
