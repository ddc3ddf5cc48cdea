"""The description of an expert: hivemind reads ours, we read hivemind's, and a stranger's does no harm."""

import signal
import subprocess
import sys
from typing import Any

import msgpack
import pytest
import torch
from hivemind.utils import MSGPackSerializer
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from hypothesis import given
from hypothesis import strategies as st

from meshnode.transport.moe.interface import ExpertInfo
from meshnode.transport.moe.schema import MAX_INFO_BYTES, pack_info, unpack_info
from protocol.errors import FrameTooLarge, MalformedMessage, RefusedInput
from protocol.identifiers import digest_of
from protocol.limits import MAX_CLASS_NAME_CHARS, MAX_CLASSES_PER_EXPERT

UID = digest_of(b"an expert")
TENSOR = BatchTensorDescriptor(6, dtype=torch.float32)


def document(**change: object) -> bytes:
    """A description as hivemind's server packs it, with some of its entries changed."""
    entries = {"forward_schema": ((TENSOR,), {}), "outputs_schema": TENSOR, "keyword_names": ()}
    return bytes(MSGPackSerializer.dumps(entries | change))


def test_hivemind_reads_our_description() -> None:
    info = ExpertInfo(inputs=(24,), outputs=(5,), expert=UID, classes=("cat", "dog"))
    read = MSGPackSerializer.loads(pack_info(info))
    ((inputs,), by_name), outputs = read["forward_schema"], read["outputs_schema"]
    assert (inputs.shape, inputs.dtype, by_name) == ((None, 24), torch.float32, {})
    assert (outputs.shape, outputs.dtype) == ((None, 5), torch.float32)
    # Its mixture makes its own tensors of them.
    assert outputs.make_zeros(2, 3, device="cpu").shape == (2, 3, 5)
    assert not outputs.requires_grad
    assert (read["keyword_names"], read["expert"], read["classes"]) == ((), UID, ("cat", "dog"))


@pytest.mark.parametrize("shape", [(1,), (24,), (3, 8, 8)])
def test_we_read_hiveminds_description(shape: tuple[int, ...]) -> None:
    tensor = BatchTensorDescriptor.from_tensor(torch.zeros(2, *shape, requires_grad=True))
    info = unpack_info(document(forward_schema=((tensor,), {}), outputs_schema=tensor, more={"of": ["it"]}))
    assert info == ExpertInfo(inputs=shape, outputs=shape, expert=None, classes=())


def test_we_read_our_own_largest_description() -> None:
    classes = tuple("ü" * (MAX_CLASS_NAME_CHARS - 3) + f"{number:03}" for number in range(MAX_CLASSES_PER_EXPERT))
    info = ExpertInfo(inputs=(640,), outputs=(256,), expert=UID, classes=classes)
    assert len(pack_info(info)) < MAX_INFO_BYTES
    assert unpack_info(pack_info(info)) == info


UNUSABLE: dict[str, dict[str, Any]] = {
    "two arguments": {"forward_schema": ((TENSOR, TENSOR), {})},
    "no argument": {"forward_schema": ((), {})},
    "an argument by name": {"forward_schema": ((TENSOR,), {"mask": TENSOR})},
    "two outputs": {"outputs_schema": (TENSOR, TENSOR)},
    "an output in a tuple": {"outputs_schema": (TENSOR,)},
    "no outputs": {"outputs_schema": None},
    "no schema": {"forward_schema": None},
    "another dtype": {"outputs_schema": BatchTensorDescriptor(6, dtype=torch.int64)},
    "no dtype": {"outputs_schema": BatchTensorDescriptor(6)},
    "no rows": {"outputs_schema": BatchTensorDescriptor(dtype=torch.float32)},
    "an empty row": {"outputs_schema": BatchTensorDescriptor(0, dtype=torch.float32)},
    "an impossible row": {"outputs_schema": BatchTensorDescriptor(2**40, dtype=torch.float32)},
    "too many dimensions": {"outputs_schema": BatchTensorDescriptor(*[2] * 9, dtype=torch.float32)},
    "an uid that is none": {"expert": "f" * 63},
    "classes that are none": {"classes": 7},
    "more classes than columns": {"classes": tuple("abcdefg")},
    "a class without a name": {"classes": ("",)},
    "another extension": {"more": msgpack.ExtType(0x50, b"\xc0")},
}


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_a_description_of_anything_that_we_cannot_call_is_refused(change: dict[str, Any]) -> None:
    assert unpack_info(document()).outputs == (6,)
    with pytest.raises(MalformedMessage):
        unpack_info(document(**change))


def nested(depth: int, code: int = 0x40) -> bytes:
    data = bytes(msgpack.packb([]))
    for _ in range(depth):
        data = bytes(msgpack.packb(msgpack.ExtType(code, data)))
    return data


BOMBS = [b"", b"\x91" * 60_000, b"\x81" * 60_000, nested(6), nested(3_000), nested(9_000), nested(3_000, 0x51)]
BOMBS += [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x40", b"\xc6\xff\xff\xff\xff"]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: f"{bomb[:2].hex()}x{len(bomb)}")
def test_a_msgpack_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_info(bomb)
    with pytest.raises(MalformedMessage):
        unpack_info(bytes(msgpack.packb({"forward_schema": msgpack.ExtType(0x40, bomb)})))


def test_the_bomb_is_one_that_ends_a_process_which_reads_it_as_hivemind_does() -> None:
    program = "import sys; from hivemind.utils import MSGPackSerializer as s; s.loads(sys.stdin.buffer.read())"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, input=nested(9_000), capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGSEGV


def test_more_bytes_than_a_description_may_have_are_not_decoded() -> None:
    with pytest.raises(FrameTooLarge):
        unpack_info(bytes(MAX_INFO_BYTES + 1))


@given(data=st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedInput):
        unpack_info(data)


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_description_with_a_byte_changed_is_refused_or_read(position: int, byte: int) -> None:
    data = bytearray(document(expert=UID, classes=("cat", "dog")))
    data[position % len(data)] = byte
    try:
        info = unpack_info(bytes(data))
    except RefusedInput:
        return
    assert len(info.inputs) >= 1
    assert all(1 <= size <= 65_536 for size in (*info.inputs, *info.outputs))
    assert len(info.classes) <= info.outputs[0]
