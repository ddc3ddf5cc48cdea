"""Links: the two ends of a kept-open stream, on which many requests are under way at once.

The caller's end asks and the callee's answers; `protocol.mux` turns both into bytes. Here are the sockets, the clocks
and the tasks: deadlines, cancellation, back-pressure and the pings that tell a silent peer from a slow one.
"""

import asyncio
import itertools
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from meshnode.logs import get_logger
from meshnode.transport.interface import Admission, FrameHandler, Traffic, kind_of
from protocol import limits
from protocol.errors import (
    Busy,
    CallTimeout,
    FrameTooLarge,
    MalformedMessage,
    ModuleMeshError,
    RefusedInput,
    RemoteFailure,
    error_from_wire,
)
from protocol.framing import Announced, EncodedFrame, Frame, encode_frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply, error_reply
from protocol.mux.chunks import ChunkKind
from protocol.mux.inbox import Began, Event, Failed, Inbox, Signalled, Whole
from protocol.mux.outbox import Outbox

__all__ = ["CalleeLink", "CallerLink", "Link", "LinkLost"]

WRITE_AHEAD_BYTES: Final = 256 * 1024
"""Given to the socket before it has sent them: what a small message waits for behind large ones, besides its turn."""

ANSWERS_AHEAD_BYTES: Final = limits.MAX_BYTES_ASSEMBLED
"""Answers that a caller has asked for and does not read; beyond it nothing more is read from that caller. Nor is it
beyond MAX_REQUESTS_PER_STREAM of them, however small."""

PING_AFTER_S: Final = 1.0
"""A link on which something is awaited and nothing moves for so long is asked whether the peer still lives."""

LOST_AFTER_S: Final = 3.0
"""A peer that is asked and stays silent for so long in all is given up; so is what a closed link still has to send."""

PING_IDLE_S: Final = 20.0
"""An idle link is kept open by a ping so often: shorter than routers remember a connection."""

CLOSE_IDLE_S: Final = 600.0
"""A link that nobody used for so long is closed by its caller; the next call opens another one."""

CALLER_GONE_S: Final = 4 * PING_IDLE_S
"""A caller that neither asks nor pings for so long has gone without a word."""

LONGEST_WAIT_S: Final = 3600.0
"""A caller that says it waits longer is taken to wait so long."""

BUSY_RETRY_S: Final = 0.1
"""What a caller is told who has too much under way on one stream."""

_ARRIVED: Final = memoryview(bytearray(256 * 1024))
"""Where the bytes of all links arrive, to be used up at once: what is new for each would be copied once more."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

log = get_logger(__name__)


class LinkLost(ConnectionError):
    """The stream ended, or its peer is silent; what was under way may or may not have been done."""


class Link(asyncio.BufferedProtocol):
    """What both ends have in common: an inbox, an outbox, and a socket that takes only so much at a time."""

    def __init__(self, traffic: Traffic, *, begins: ChunkKind) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._traffic = traffic
        self._inbox = Inbox(begins)
        self._outbox = Outbox()
        self._stream: Stream | None = None
        self._socket: asyncio.Transport | None = None
        self._ended = False
        self._writable = True
        self._moved_at = time.monotonic()
        """When bytes last came in or went out."""

    def attach(self, stream: Stream, received: bytes = b"") -> None:
        """Speak over an open stream from now on, from which `received` has been read already.

        What lies in the stream's own buffer is lost.
        """
        # Kept, for asyncio aborts the socket of a reader that is no longer referred to.
        self._stream = stream
        self._socket = cast("asyncio.Transport", stream[1].transport)
        self._socket.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        self._socket.pause_reading()
        self._socket.set_protocol(self)
        self._socket.resume_reading()  # uvloop looks only here at how a protocol is to be handed its bytes
        if received:
            self._receive(memoryview(received))
        if stream[0].at_eof() or self._socket.is_closing():
            self.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _ARRIVED

    def buffer_updated(self, nbytes: int) -> None:
        self._receive(_ARRIVED[:nbytes])

    def _receive(self, data: memoryview) -> None:
        self._moved_at = time.monotonic()
        try:
            for event in self._inbox.receive(data):
                self._happened(event)
        except RefusedInput as refusal:
            self._give_up(refusal)
        self._write()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._moved_at = time.monotonic()
        self._writable = True
        self._write()

    def eof_received(self) -> bool:
        return False  # closes the socket

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        if not self.closed.done():  # whoever waited for it may have been cancelled, and it with them
            self.closed.set_result(None)
        self._lost("the stream was closed" if exc is None else str(exc) or type(exc).__name__)

    def close(self, why: LinkLost | None = None) -> None:
        """End the stream; what is under way fails at once, what is written already may still go out."""
        if self._ended:
            return
        if self._socket is not None:
            self._socket.close()
            # A peer that takes nothing must not keep the socket for ever.
            asyncio.get_running_loop().call_later(LOST_AFTER_S, self._socket.abort)
        self.connection_lost(why)

    def tick(self, now_s: float) -> None:
        """Look after the peer's life; to be called about once a second."""
        raise NotImplementedError

    def _write(self) -> None:
        socket = self._socket
        if socket is None or socket.is_closing():
            return
        while self._writable and self._outbox:
            socket.writelines(self._outbox.take())

    def _happened(self, event: Event) -> None:
        raise NotImplementedError

    def _give_up(self, refusal: RefusedInput) -> None:
        """The stream cannot be read on."""
        raise NotImplementedError

    def _lost(self, reason: str) -> None:
        raise NotImplementedError


class CallerLink(Link):
    """The end that asks."""

    def __init__(self, peer_id: PeerId, traffic: Traffic) -> None:
        super().__init__(traffic, begins=ChunkKind.ANSWER)
        self._peer_id = peer_id
        self._under_way: dict[int, asyncio.Future[Whole]] = {}
        self._room = asyncio.Semaphore(limits.MAX_REQUESTS_PER_STREAM)
        self._ids = itertools.count()
        self._used_at = self._moved_at
        self._pinged_at: float | None = None

    async def call(self, request: EncodedFrame, kind: str, *, wait_s: float) -> Frame:
        """Ask, and wait for the answer; the caller's own deadline cancels this.

        Args:
            request: What to ask.
            kind: Kind of traffic it counts as.
            wait_s: What the peer is told of the deadline.

        Raises:
            LinkLost: The stream broke before the answer.
            FrameTooLarge: More is being answered on this stream than is taken.
            RefusedInput: The answer is none.
        """
        async with self._room:
            if self._ended:
                raise LinkLost("the stream was closed")
            request_id = self._free_id()
            answer: asyncio.Future[Whole] = asyncio.get_running_loop().create_future()
            self._under_way[request_id] = answer
            if len(self._under_way) == 1:  # silence counts from the first question on
                self._moved_at = time.monotonic()
            self._outbox.send(ChunkKind.REQUEST, request_id, request, wait_ms=math.ceil(1e3 * wait_s))
            self._write()
            try:
                whole = await answer
            finally:
                self._used_at = time.monotonic()
                # An answer may come before the question is out: what is left of that need not be sent.
                self._traffic.sent[kind] += request.num_bytes - self._outbox.drop(request_id)
                if self._under_way.pop(request_id, None) is not None:  # nobody has answered
                    self._cancel(request_id)
            self._traffic.received[kind] += whole.num_bytes
            return whole.frame

    def tick(self, now_s: float) -> None:
        if self._ended:
            return
        silent_s = now_s - self._moved_at
        if self._pinged_at is not None and self._moved_at > self._pinged_at:
            self._pinged_at = None
        lost = self._pinged_at is not None and now_s - self._pinged_at >= LOST_AFTER_S - PING_AFTER_S
        unused = not self._under_way and now_s - self._used_at >= CLOSE_IDLE_S
        if lost:
            self.close(LinkLost(f"no sign of life for {silent_s:.1f} s"))
        elif unused:
            self.close()
        elif self._pinged_at is None and silent_s >= (PING_AFTER_S if self._under_way else PING_IDLE_S):
            self._outbox.signal(ChunkKind.PING)
            self._write()
            self._pinged_at = now_s

    def _free_id(self) -> int:
        # They begin again after some days of load; an id that is still under way then is passed over.
        return next(number for number in (1 + n % 0xFFFF_FFFF for n in self._ids) if number not in self._under_way)

    def _cancel(self, request_id: int) -> None:
        self._inbox.drop(request_id)
        self._outbox.signal(ChunkKind.CANCEL, request_id)
        self._write()

    def _happened(self, event: Event) -> None:
        match event:
            case Whole(request_id):
                self._end(request_id, event)
            case Began(0, _, announced):
                raise _stream_error(announced, self._peer_id)
            case Began(request_id, _, announced):
                if request_id not in self._under_way:
                    self._inbox.drop(request_id)  # cancelled meanwhile
                elif self._inbox.assembling_bytes > limits.MAX_BYTES_ASSEMBLED:
                    self._end(request_id, FrameTooLarge(announced.body_bytes, limits.MAX_BYTES_ASSEMBLED))
                    self._cancel(request_id)
            case Failed(request_id, error):
                self._end(request_id, error)
            case Signalled():
                pass  # a PONG: that something has come is all that it says

    def _end(self, request_id: int, outcome: Whole | ModuleMeshError) -> None:
        answer = self._under_way.pop(request_id, None)
        if answer is None or answer.done():
            return
        if isinstance(outcome, Whole):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)

    def _give_up(self, refusal: RefusedInput) -> None:
        for request_id in tuple(self._under_way):
            self._end(request_id, refusal)
        self.close()

    def _lost(self, reason: str) -> None:
        for answer in self._under_way.values():
            if not answer.done():
                answer.set_exception(LinkLost(reason))
        self._under_way.clear()


@dataclass(slots=True, eq=False)
class _Request:
    """One that a callee has let in."""

    kind: str
    """Of traffic."""
    body_bytes: int
    wait_s: float
    """How long its caller waits."""
    deadline_s: float
    """When it no longer does, by the monotonic clock."""
    task: asyncio.Task[None] | None = None
    """Answers it, once its body is whole."""


class CalleeLink(Link):
    """The end that answers.

    Args:
        sender: Who asks, as the session has proved.
        handler: Answers one request; a named error that it raises goes back as an error.
        admit: Refuses a request by its header, with a named error.
        traffic: Counts what passes.
    """

    def __init__(self, sender: PeerId, handler: FrameHandler, admit: Admission, traffic: Traffic) -> None:
        super().__init__(traffic, begins=ChunkKind.REQUEST)
        self._sender = sender
        self._handler = handler
        self._admit = admit
        self._requests: dict[int, _Request] = {}
        """Begun, and neither answered nor cancelled."""
        self._held_bytes = 0
        """Of their bodies, from the moment that these are announced."""

    @property
    def answering(self) -> set[asyncio.Task[None]]:
        """The requests that are whole and not answered."""
        return {request.task for request in self._requests.values() if request.task is not None}

    def tick(self, now_s: float) -> None:
        if now_s - self._moved_at >= CALLER_GONE_S and not self.answering:
            self.close()
            return
        coming = {number: request for number, request in self._requests.items() if request.task is None}
        for request_id, request in coming.items():
            if now_s >= request.deadline_s:
                self._end(request_id)
                self._refuse(request_id, CallTimeout(self._sender, "its body", request.wait_s), request.kind)
        if coming:
            # On a slow line much of a body is between the two ends, where its caller sees nothing of its coming on.
            self._outbox.signal(ChunkKind.PONG)
            self._write()

    def _write(self) -> None:
        super()._write()
        if self._socket is None:
            return
        # Whoever does not read the answers is not read further.
        outbox = self._outbox
        if outbox.waiting_bytes >= ANSWERS_AHEAD_BYTES or outbox.num_messages >= limits.MAX_REQUESTS_PER_STREAM:
            self._socket.pause_reading()
        else:
            self._socket.resume_reading()

    def _happened(self, event: Event) -> None:
        match event:
            case Began(request_id, wait_ms, announced):
                self._begin(request_id, wait_ms / 1e3, announced)
            case Whole(request_id, frame, num_bytes):
                request = self._requests[request_id]
                self._traffic.received[request.kind] += num_bytes
                work = self._answer(request_id, frame, request)
                request.task = asyncio.get_running_loop().create_task(work, name="answer")
                request.task.add_done_callback(partial(self._answered, request_id, request))
            case Failed(request_id, error):
                self._end(request_id)
                self._refuse(request_id, error)
            case Signalled(ChunkKind.PING, _):
                self._outbox.signal(ChunkKind.PONG)
            case Signalled(_, request_id):  # CANCEL
                self._outbox.drop(request_id)
                ended = self._end(request_id)
                if ended is not None and ended.task is not None:
                    ended.task.cancel()

    def _begin(self, request_id: int, wait_s: float, announced: Announced) -> None:
        if request_id == 0:
            raise MalformedMessage("request id", reason="0 is the stream's own")
        if request_id in self._requests:
            raise MalformedMessage("request id", reason=f"{request_id} begins before it has been answered")
        kind, body_bytes = kind_of(announced.message), announced.body_bytes
        wait_s = min(wait_s, LONGEST_WAIT_S)
        try:
            if len(self._requests) >= limits.MAX_REQUESTS_PER_STREAM:
                raise Busy(retry_after_s=BUSY_RETRY_S)
            if self._held_bytes + body_bytes > limits.MAX_BYTES_ASSEMBLED:
                raise Busy(retry_after_s=BUSY_RETRY_S)
            self._admit(self._sender, announced, wait_s)
        except ModuleMeshError as refusal:
            self._inbox.drop(request_id)
            self._refuse(request_id, refusal, kind)
        else:
            self._requests[request_id] = _Request(kind, body_bytes, wait_s, time.monotonic() + wait_s)
            self._held_bytes += body_bytes

    def _end(self, request_id: int) -> _Request | None:
        """Forget a request, if there is one of this id, and what has come of it."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._inbox.drop(request_id)
            self._held_bytes -= request.body_bytes
        return request

    async def _answer(self, request_id: int, frame: Frame, request: _Request) -> None:
        # Behind its caller's deadline an answer helps nobody; the caller has stopped waiting by itself.
        deadline = asyncio.timeout(max(0.0, request.deadline_s - time.monotonic()))
        try:
            async with deadline:
                reply = encode_frame(await self._handler(self._sender, frame))
        except TimeoutError:
            if not deadline.expired():
                raise  # a bug of the handler
            error = CallTimeout(self._sender, type(frame.message).__name__, request.wait_s)
            reply = encode_frame(Frame(error_reply(error)))
        except ModuleMeshError as error:
            reply = encode_frame(Frame(error_reply(error)))
        self._send(request_id, reply, request.kind)
        self._write()

    def _answered(self, request_id: int, request: _Request, task: asyncio.Task[None]) -> None:
        if self._requests.get(request_id) is request:
            self._end(request_id)
        # A bug of ours is told to the log, and its caller need not wait out the deadline.
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("a request could not be answered", peer=self._sender, exc_info=bug)
            self._refuse(request_id, RemoteFailure(None, "failure", type(bug).__name__), request.kind)
            self._write()

    def _refuse(self, request_id: int, error: ModuleMeshError, kind: str = "control") -> None:
        self._send(request_id, encode_frame(Frame(error_reply(error))), kind)

    def _send(self, request_id: int, reply: EncodedFrame, kind: str) -> None:
        self._traffic.sent[kind] += reply.num_bytes
        self._outbox.send(ChunkKind.ANSWER, request_id, reply)

    def _give_up(self, refusal: RefusedInput) -> None:
        # Answers that wait are lost with the stream; why it ends is written even if the caller takes nothing now.
        self._outbox = Outbox()
        self._refuse(0, refusal)
        self._writable = True
        self._write()
        self.close()

    def _lost(self, reason: str) -> None:
        for task in self.answering:
            task.cancel()
        self._requests.clear()


def _stream_error(announced: Announced, peer_id: PeerId) -> RefusedInput:
    """Why the peer will read no more of this stream."""
    message = announced.message
    if isinstance(message, ErrorReply):
        error = error_from_wire(message.code, message.message, message.data, peer_id=peer_id)
        if isinstance(error, RefusedInput):
            return error
    return MalformedMessage("request id", reason="the peer has ended the stream and does not say why")
