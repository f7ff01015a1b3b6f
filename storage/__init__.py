"""Durable bytes: the log, its index, the ack ledger and the catalog. Knows no AMQP and no trio.

Start with store.py, the face. A message goes down through bytes/ (its record, its batch) and write/
(its place, the commit to the disk), and comes back through lanes/ and index/; what was settled goes
to write/ledger.py; index/checkpoint.py brings the index up to date; space/ gives room back, with
compaction when only a little is alive. At a start start/recovery.py puts all of it together: fold.py
says what the ledger means, judge.py judges the log. examine.py looks without touching.

Some choices, and why:

- An LSN is a record's number, not its byte: places are known at once on the owner's thread, and the
  commit thread has nothing left to compute but one hash.
- A record has its own hash, seeded with that of its meta, so that a single read is verified without
  concatenating anything; the batch's hash covers every byte, and tells recovery where the log ends.
- All hashes in files are seeded with directory, file and offset: valid bytes in another place, such
  as inside a message's body, are not valid. So a later whole batch is evidence, never coincidence.
- Recovery writes the tail that is behind the checkpoint again in place rather than into a fresh
  segment: the bytes are the same, so a crash in the middle leaves nothing to clean up.
- The ledger names the segments that must exist and those given up: a file that is missing is damage,
  unless it was given up. So the index can be rebuilt at any time, and nothing is lost silently.
- A full disk holds the batch and tries again, and says so (`full`), instead of refusing what a
  consumer may already have. Acks and checkpoints go on: the ledger's space is reserved, and the
  index's (headroom.py).
- The index's checkpoint covers what was durable when it was gathered; acks in it may be ahead of
  the messages that they belong to, which the orphan rule makes harmless.
- What a compaction wrote has an id of its own and stands beside its sources until the ledger says
  that it replaces them and the index's pointers are moved: old pointers are good all the time. So
  segments are in the order of their first LSNs, not of their ids.
- A message that went to several queues counts as alive for each of them, so such segments are
  compacted later than they could be; it saves a look at every record.
- Segments are reserved before they are needed, footers included: neither a confirm nor the sealing
  of a segment waits for space.
"""
