"""Many requests on one stream, in chunks: bytes in, events out; messages in, bytes out; no clock and no socket.

::

    4 bytes   kind (1 byte) and length of the payload (3 bytes), unsigned big-endian
    4 bytes   request id, unsigned big-endian
    payload   of a REQUEST or ANSWER:
                4 bytes   length of the frame's header
                4 bytes   milliseconds that the caller of a REQUEST waits; 0 in an ANSWER
                header    of the frame (`protocol.framing`)
                body      its beginning: all of it, or as much as the chunk holds
              of a BODY: the next piece of the body that began under this id
              of a CANCEL, PING or PONG: none

The peer that opened the stream asks, the other one answers. A request's id is the caller's choice among those that it
has not under way, and not 0; an answer has its request's. An ANSWER under id 0 is an error of the stream as a whole,
and its last word.
"""
