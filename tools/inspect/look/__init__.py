"""What is in a data directory, read without changing anything. Knows no command."""
