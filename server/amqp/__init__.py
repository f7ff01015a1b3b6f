"""AMQP 0-9-1 without I/O: bytes in, events out; methods in, bytes out.

Promises that nothing a peer can send makes it raise, and that what a peer can make it remember is
bounded. Knows no socket, no clock and nothing else of qlog: no queue, no exchange, no user.

Read in this order: `values` (field tables), `spec` (the methods), `properties` (what a content
header carries), `envelope` (all that surrounds a body), `frames` (octets on the wire), `recognise`
(the fast path), `connection` (the server's side of a conversation), `deliver` (many messages to one
consumer), `errors` (the replies that close a channel or a connection).
"""
