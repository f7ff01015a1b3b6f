"""The index in LMDB, derived from log and ledger, and the checkpoints that bring it up to date."""
