"""Streams: messages that are kept and read by many, in segments of their own.

A new message of a stream is a message of the stream's lane in the shared log: one fdatasync makes
it durable beside all others. Its number in the lane is its offset. The mover (streams.py) copies
durable messages, in order, from the lane to the end of the stream's segments, syncs these, and then
settles the messages in the lane. So the lane's floor says how far the stream was moved: what lies
below it is in segments, and what lies above it is in the log. A crash in between leaves messages in
both, and the next start cuts the segments back to the floor: nothing is lost, nothing doubled.

format.py has the layouts; files.py finds and judges segments; write.py appends, on the checkpoint
thread; stream.py is one stream for those who read it; chunks.py is what is in memory of all
streams; streams.py moves messages, and gives up old segments.
"""
