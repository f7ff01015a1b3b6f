"""The messages of one queue at one priority: in memory, on disk, settled or not."""
