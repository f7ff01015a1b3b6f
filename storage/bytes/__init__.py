"""The bytes on disk and the disk itself: records, batches, footers, hashes, paths."""
