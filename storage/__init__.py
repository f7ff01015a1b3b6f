"""Durable bytes: the log, its index, the ledger and the catalog. Knows no AMQP and no trio.

Start with store.py, the face, and journal.py: what log and ledger promise. A message goes down
through bytes/ (its record, its batch) and write/ (its place, the commit to the disk), and comes
back through lanes/ and index/. Settlements and definitions go to write/ledger.py; write/replay.py
gives all of it out again in its order. index/checkpoint.py brings index and catalog up to date.
space/ gives room back, with compaction where only a little is alive. At a start start/recovery.py
puts all of it together: judge.py says what is damage, and fold.py what the ledger means. examine.py
looks without changing anything.

docs/ARCHITECTURE.md has the pictures and the glossary. Some choices, and why:

- An LSN is a record's number, not its byte: places are known at once on the owner's thread, and the
  commit thread has nothing left to compute but one hash.
- A record has its own hash, seeded with that of its meta, so that a single record is verified
  without joining any bytes. The batch's hash covers every byte, and tells recovery where the log
  ends.
- All hashes in files are seeded with directory, file and offset: valid bytes in another place, such
  as inside a message's body, are not valid. So a later whole batch is evidence, never coincidence.
- Recovery writes the tail behind the checkpoint again in place, not into a new segment: the bytes
  are the same, so a crash in the middle leaves nothing to clean up.
- The ledger names the segments that must exist and those that were given up. A missing file is
  damage, unless it was given up. So the index can be rebuilt at any time, and nothing is lost
  silently.
- Definitions are records of the ledger. LMDB's catalog is a checkpoint of them, as the index is one
  of the rest. A queue's definition is synced before the log has a message for the queue.
- When the disk is full, the batch is held and tried again (`Store.shortage` says why). It is not
  refused, since a consumer may already have its messages. Acks and checkpoints go on: the space of
  the ledger is reserved, and so is that of the index (headroom.py).
- A checkpoint covers the messages that were durable when it began. Settlements in it may be of
  messages that are not durable, which the orphan rule (recovery.py) makes harmless.
- A segment that a compaction wrote has an id of its own, and stands beside its sources until the
  ledger says that it replaces them and the index's pointers are moved: old pointers stay good until
  then. So segments are in the order of their first LSNs, not of their ids.
- A message that went to several queues counts as alive for each of them. Such segments are
  compacted later than they could be, but no record has to be looked at for that.
- Segments are reserved before they are needed, footers included: neither a confirm nor the sealing
  of a segment waits for space.
"""
