"""Both ends of a link in one process, over a real pair of sockets; either of them may be a bare stream of bytes."""

import asyncio
import inspect
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any

import numpy as np
import pytest
import uvloop
from mesh_in_memory import key_of

from meshnode.transport.interface import Admission, FrameHandler, Traffic, admit_all
from meshnode.transport.links import CalleeLink, CallerLink, Link, Stream
from protocol.framing import Frame, encode_frame
from protocol.identifiers import PeerId, digest_of
from protocol.messages import BlobGet, BlobPart
from protocol.mux.chunks import ChunkKind, chunk_head
from protocol.mux.inbox import Event, Inbox, Whole
from protocol.mux.outbox import Outbox

__all__ = [
    "CALLEE",
    "CALLER",
    "Bare",
    "Desk",
    "Ends",
    "answer",
    "ask",
    "bare_callee",
    "bare_caller",
    "beginning_of",
    "call",
    "chunk",
    "echo",
    "linked",
    "message_bytes",
    "number_of",
    "on_both_loops",
    "streams",
    "until",
]

CALLER, CALLEE = key_of("a").peer_id, key_of("b").peer_id

PATIENCE_S = 20.0
"""A test in which something never happens fails after this."""


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Any:
    """Run a test on asyncio's own loop and on uvloop, which is the daemon's: their sockets differ."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        async def patiently() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await test(**fixtures)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(patiently())

    update_wrapper(run, test)
    signature = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    vars(run)["__signature__"] = signature.replace(
        parameters=[loop, *signature.parameters.values()], return_annotation=None
    )
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    return loops(run)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    while not condition():
        await asyncio.sleep(0)


# --- requests and answers that know their number ---


def ask(number: int, num_bytes: int = 0) -> Frame:
    tensors = {"x": np.zeros(num_bytes, np.uint8)} if num_bytes else {}
    return Frame(BlobGet(digest=digest_of(b""), offset=number, length=1), tensors)


def answer(number: int, num_bytes: int = 0) -> Frame:
    tensors = {"x": np.zeros(num_bytes, np.uint8)} if num_bytes else {}
    return Frame(BlobPart(digest=digest_of(b""), offset=number, total_bytes=number), tensors)


def number_of(frame: Frame) -> int:
    assert isinstance(frame.message, BlobGet | BlobPart), frame.message
    return frame.message.offset


async def echo(sender: PeerId, request: Frame) -> Frame:
    assert sender == CALLER
    return answer(number_of(request))


@dataclass
class Desk:
    """Answers each request with its number, while `is_open` is set."""

    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    under_way: int = 0
    most_under_way: int = 0

    async def __call__(self, sender: PeerId, request: Frame) -> Frame:
        number = number_of(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.started.put_nowait(number)
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(number)
            raise
        finally:
            self.under_way -= 1
        return answer(number)


# --- links, and streams that are none ---


@dataclass
class Ends:
    """Two links over one pair of sockets."""

    caller: CallerLink
    callee: CalleeLink
    asked: Traffic
    answered: Traffic

    async def ask(self, number: int, num_bytes: int = 0, *, wait_s: float = 60.0) -> int:
        """Ask, and return the number of what is answered."""
        return number_of(await call(self.caller, ask(number, num_bytes), wait_s=wait_s))


async def call(link: CallerLink, request: Frame, *, wait_s: float = 60.0) -> Frame:
    return await link.call(encode_frame(request), "blobs", wait_s=wait_s)


async def streams() -> tuple[Stream, Stream]:
    ours, theirs = socket.socketpair()
    return await asyncio.open_unix_connection(sock=ours), await asyncio.open_unix_connection(sock=theirs)


@asynccontextmanager
async def linked(handler: FrameHandler, admit: Admission = admit_all) -> AsyncIterator[Ends]:
    asked, answered = Traffic(), Traffic()
    ends = Ends(CallerLink(CALLEE, asked), CalleeLink(CALLER, handler, admit, answered), asked, answered)
    ours, theirs = await streams()
    ends.caller.attach(ours)
    ends.callee.attach(theirs)
    try:
        yield ends
    finally:
        ends.caller.close()
        ends.callee.close()


class Bare:
    """One end of a stream at which a test reads and writes what it likes."""

    def __init__(self, stream: Stream, comes: ChunkKind) -> None:
        self.reader, self.writer = stream
        self._inbox = Inbox(comes)
        self._events: deque[Event] = deque()

    async def event(self) -> Event:
        """What the other end says next. Raises EOFError at the end of the stream."""
        while not self._events:
            data = await self.reader.read(2**20)
            if not data:
                raise EOFError
            self._events += self._inbox.receive(data)
        return self._events.popleft()

    async def whole(self) -> Whole:
        """The next message that is complete."""
        while True:
            event = await self.event()
            if isinstance(event, Whole):
                return event


@asynccontextmanager
async def _bare(link: Link, comes: ChunkKind) -> AsyncIterator[Bare]:
    ours, theirs = await streams()
    link.attach(ours)
    bare = Bare(theirs, comes)
    try:
        yield bare
    finally:
        link.close()
        bare.writer.transport.abort()


@asynccontextmanager
async def bare_callee() -> AsyncIterator[tuple[CallerLink, Bare]]:
    """A link that asks, and a stream that should answer."""
    link = CallerLink(CALLEE, Traffic())
    async with _bare(link, ChunkKind.REQUEST) as bare:
        yield link, bare


@asynccontextmanager
async def bare_caller(handler: FrameHandler, admit: Admission = admit_all) -> AsyncIterator[tuple[Bare, CalleeLink]]:
    """A stream that should ask, and a link that answers."""
    link = CalleeLink(CALLER, handler, admit, Traffic())
    async with _bare(link, ChunkKind.ANSWER) as bare:
        yield bare, link


def chunk(kind: ChunkKind, request_id: int = 0, payload: bytes = b"") -> bytes:
    return chunk_head(kind, request_id, len(payload)) + payload


def message_bytes(kind: ChunkKind, request_id: int, frame: Frame, *, wait_ms: int = 60_000) -> bytes:
    """A whole message as it stands on a stream."""
    outbox = Outbox()
    outbox.send(kind, request_id, encode_frame(frame), wait_ms=wait_ms)
    return b"".join(b"".join(outbox.take()) for _ in iter(outbox.__bool__, False))


def beginning_of(data: bytes) -> bytes:
    """The first chunk of a whole message without the body that stands in it."""
    end = 16 + int.from_bytes(data[8:12])
    return data[:1] + (end - 8).to_bytes(3) + data[4:end]
