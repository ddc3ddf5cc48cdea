"""An outbox and an inbox with a wire between them, under all orders of sending, cancelling and partial delivery."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from protocol import limits
from protocol.framing import Frame, encode_frame
from protocol.messages import Hello
from protocol.mux.chunks import ChunkKind
from protocol.mux.inbox import Began, Inbox, Signalled, Whole
from protocol.mux.outbox import Outbox

CHUNK = limits.BODY_CHUNK_BYTES


class OneDirection(RuleBasedStateMachine):
    """Requests on their way; what must be true of them at any moment, and once everything has come through."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.outbox, self.inbox = Outbox(), Inbox(ChunkKind.REQUEST)
        self.wire = bytearray()
        self.sent: dict[int, tuple[int, int]] = {}
        """Bytes of the body by id, and of header and body."""
        self.given_up: set[int] = set()
        """Cancelled by the sender, or dropped by the receiver."""
        self.begun: list[int] = []
        self.whole: list[int] = []

    @rule(target=ids, size=st.sampled_from([0, 1, 1000, CHUNK, CHUNK + 1, 3 * CHUNK - 1]))
    def send(self, size):
        request_id = len(self.sent) + 1
        frame = encode_frame(Frame(Hello(None), {"x": np.full(size, request_id % 256, np.uint8)}))
        self.outbox.send(ChunkKind.REQUEST, request_id, frame, wait_ms=request_id)
        self.sent[request_id] = size, frame.num_bytes
        return request_id

    @rule(request_id=consumes(ids))
    def cancel(self, request_id):
        before_bytes = self.outbox.waiting_bytes
        assert self.outbox.drop(request_id) == before_bytes - self.outbox.waiting_bytes
        assert self.outbox.drop(request_id) == 0
        self.outbox.signal(ChunkKind.CANCEL, request_id)
        self.given_up.add(request_id)

    @rule(request_id=consumes(ids))
    def refuse(self, request_id):
        """The receiver wants no more of it."""
        self.inbox.drop(request_id)
        if request_id in self.begun:
            self.given_up.add(request_id)

    @rule()
    def ping(self):
        self.outbox.signal(ChunkKind.PING)

    @rule(num_chunks=st.integers(1, 4))
    def write(self, num_chunks):
        for _ in range(num_chunks):
            self.wire += b"".join(self.outbox.take())

    @rule(num_bytes=st.integers(1, 20) | st.integers(1, 4 * CHUNK))
    def deliver(self, num_bytes):
        arriving = bytes(self.wire[:num_bytes])
        del self.wire[:num_bytes]
        for event in self.inbox.receive(arriving):
            match event:
                case Began(request_id, wait_ms, announced):
                    assert wait_ms == request_id
                    assert announced.body_bytes == self.sent[request_id][0]
                    self.begun.append(request_id)
                case Whole(request_id, frame, num_bytes_of_it):
                    size, num_bytes_sent = self.sent[request_id]
                    assert num_bytes_of_it == num_bytes_sent
                    np.testing.assert_array_equal(frame.tensors["x"], np.full(size, request_id % 256))
                    self.whole.append(request_id)
                case _:
                    assert isinstance(event, Signalled)

    @invariant()
    def each_message_comes_once_and_after_it_has_begun(self):
        assert len(set(self.begun)) == len(self.begun)
        assert len(set(self.whole)) == len(self.whole)
        assert set(self.whole) <= set(self.begun)

    @invariant()
    def the_accounts_hold_what_is_there(self):
        pending = set(self.begun) - set(self.whole)
        assert 0 <= self.inbox.assembling_bytes <= sum(self.sent[request_id][0] for request_id in pending)
        assert (self.outbox.waiting_bytes > 0) == (self.outbox.num_messages > 0)

    def teardown(self):
        while self.outbox:
            self.write(1)
        while self.wire:
            self.deliver(len(self.wire))
        assert self.outbox.waiting_bytes == self.outbox.num_messages == self.inbox.assembling_bytes == 0
        assert set(self.sent) - self.given_up <= set(self.whole)
        self.each_message_comes_once_and_after_it_has_begun()


OneDirection.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestOneDirection = OneDirection.TestCase
