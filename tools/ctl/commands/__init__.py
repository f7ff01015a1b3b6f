"""The rows of the table, one file a subject; each ends with its part of the table."""
