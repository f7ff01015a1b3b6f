"""The way to the disk: places, batches, the commit thread, segments, the ledger."""
