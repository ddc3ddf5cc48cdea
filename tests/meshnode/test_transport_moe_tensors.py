"""hivemind's tensors: what is expected comes through unchanged, and nothing else comes through."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.proto import runtime_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from meshnode.transport.moe.tensors import (
    COMPRESSIONS,
    NO_COMPRESSION,
    Gathering,
    TensorSpec,
    pack_tensor,
    require_rows,
    split_tensor,
)
from protocol.errors import FrameTooLarge, MalformedTensor, RefusedInput
from protocol.limits import MAX_FRAME_BYTES

SPEC = TensorSpec("inputs", (3,))
BATCH = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
finite = st.floats(-1e6, 1e6, width=32)


def gathered(*parts: runtime_pb2.Tensor, specs: Sequence[TensorSpec] = (SPEC,), **settings: Any) -> list[np.ndarray]:
    gathering = Gathering(specs, **settings)
    for part in parts:
        gathering.add(part)
    return gathering.finish()


def tensor(**change: Any) -> runtime_pb2.Tensor:
    """`BATCH` as hivemind sends it, with some of the protobuf's fields changed."""
    made = serialize_torch_tensor(torch.from_numpy(BATCH))
    for name, value in change.items():
        made.ClearField(name)
        if name == "size":
            made.size.extend(value)
        else:
            setattr(made, name, value)
    return made


@given(npst.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=finite))
def test_what_hivemind_sends_arrives_and_what_we_send_arrives_there(array: np.ndarray) -> None:
    (arrived,) = gathered(serialize_torch_tensor(torch.from_numpy(array)))
    assert arrived.dtype == np.float32
    assert np.array_equal(arrived, array)
    assert arrived.flags.writeable, "torch wraps no memory that it may not write"
    there = deserialize_torch_tensor(pack_tensor(array))
    assert np.array_equal(there.numpy(), array)
    assert not there.requires_grad


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
@given(array=npst.arrays(np.float32, st.tuples(st.integers(2, 5), st.just(2), st.integers(1, 4)), elements=finite))
def test_every_compression_is_decoded_as_hivemind_does_it(compression: int, array: np.ndarray) -> None:
    sent = serialize_torch_tensor(torch.from_numpy(array.copy()), compression)
    theirs = deserialize_torch_tensor(sent).numpy()
    (ours,) = gathered(sent, specs=[TensorSpec("outputs", array.shape[1:])], compressions=COMPRESSIONS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0, strict=True)


def test_a_server_takes_no_compression_and_a_client_none_that_it_cannot_decode() -> None:
    for compression in COMPRESSIONS - NO_COMPRESSION:
        sent = serialize_torch_tensor(torch.from_numpy(BATCH.copy()), compression)
        with pytest.raises(MalformedTensor, match="compression"):
            gathered(sent)
    for compression in (runtime_pb2.BLOCKWISE_8BIT, 77):
        with pytest.raises(MalformedTensor, match="compression"):
            gathered(tensor(compression=compression), compressions=COMPRESSIONS)


@pytest.mark.parametrize("cut", [1, 5, 47, 48, 1000])
def test_a_tensor_in_parts_is_put_together(cut: int) -> None:
    whole = tensor()
    head = tensor(buffer=whole.buffer[:cut])
    rest = [runtime_pb2.Tensor(buffer=bytes([byte])) for byte in whole.buffer[cut:]]
    assert np.array_equal(gathered(head, *rest)[0], BATCH)


def test_our_parts_are_those_that_hivemind_puts_together() -> None:
    large = np.random.default_rng(0).standard_normal((200_000, 3)).astype(np.float32)
    parts = split_tensor(pack_tensor(large))
    assert len(parts) == 3
    assert max(len(part.buffer) for part in parts) == 2**20
    assert [bool(part.dtype) for part in parts] == [True, False, False]
    assert np.array_equal(gathered(*parts)[0], large)


def test_several_tensors_have_one_number_of_rows() -> None:
    specs = [SPEC, TensorSpec("grad_outputs", (2,))]
    grads = pack_tensor(np.ones((4, 2), np.float32))
    inputs, arrived = gathered(tensor(), grads, specs=specs)
    assert np.array_equal(inputs, BATCH)
    assert arrived.shape == (4, 2)
    with pytest.raises(MalformedTensor, match=r"grad_outputs.*3 rows, expected 4"):
        gathered(tensor(), pack_tensor(np.ones((3, 2), np.float32)), specs=specs)
    with pytest.raises(MalformedTensor, match=r"grad_outputs.*missing"):
        gathered(tensor(), specs=specs)
    with pytest.raises(MalformedTensor, match="more than 1 tensors"):
        gathered(tensor(), grads)
    with pytest.raises(MalformedTensor, match="4 rows, expected 5"):
        gathered(tensor(), num_rows=5)


MALFORMED: dict[str, dict[str, Any]] = {
    "another dtype": {"dtype": "float64"},
    "a dtype that runs code in others": {"dtype": "O"},
    "no dtype": {"dtype": ""},
    "bfloat16": {"dtype": "bfloat16"},
    "another width": {"size": [3, 4]},
    "no dimensions": {"size": []},
    "one dimension": {"size": [12]},
    "three dimensions": {"size": [4, 3, 1]},
    "a thousand dimensions": {"size": [1] * 1000},
    "too few rows": {"size": [3, 3]},
    "too many rows": {"size": [5, 3]},
    "a byte too few": {"buffer": BATCH.tobytes()[:-1]},
    "a byte too many": {"buffer": BATCH.tobytes() + b"\0"},
    "no bytes": {"buffer": b""},
    "not a number": {"buffer": np.full((4, 3), np.nan, np.float32).tobytes()},
    "infinity": {"buffer": np.full((4, 3), np.inf, np.float32).tobytes()},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_anything_else_than_what_is_expected_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedTensor):
        gathered(tensor(**change))


def test_a_claim_is_refused_before_any_of_its_bytes_are_held() -> None:
    gathering = Gathering([TensorSpec("inputs", (2**10,))])
    with pytest.raises(FrameTooLarge):
        gathering.add(runtime_pb2.Tensor(dtype="float32", size=[2**32 - 1, 2**10]))
    with pytest.raises(FrameTooLarge):
        gathered(tensor(), pack_tensor(BATCH), specs=[SPEC, SPEC], max_bytes=2 * BATCH.nbytes - 1)
    assert len(gathered(tensor(), pack_tensor(BATCH), specs=[SPEC, SPEC], max_bytes=2 * BATCH.nbytes)) == 2


def test_more_parts_than_announced_are_refused_one_by_one() -> None:
    gathering = Gathering([SPEC])
    gathering.add(tensor())
    with pytest.raises(MalformedTensor, match="more than the 48 bytes"):
        gathering.add(runtime_pb2.Tensor(buffer=b"\0"))
    with pytest.raises(MalformedTensor, match="an empty part"):
        gathering.add(runtime_pb2.Tensor())
    with pytest.raises(MalformedTensor, match="no dtype"):
        Gathering([SPEC]).add(runtime_pb2.Tensor(buffer=b"\0"))


@pytest.mark.parametrize("num_values", [0, 1, 255, 257, -1, 2**62])
def test_a_codebook_of_another_size_is_refused(num_values: int) -> None:
    sent = serialize_torch_tensor(torch.from_numpy(BATCH.copy()), runtime_pb2.UNIFORM_8BIT)
    sent.buffer = num_values.to_bytes(8, "little", signed=True) + sent.buffer[8:]
    with pytest.raises(MalformedTensor, match="codebook"):
        gathered(sent, compressions=COMPRESSIONS)


@given(
    compression=st.sampled_from(sorted(COMPRESSIONS)) | st.integers(0, 9),
    dtype=st.sampled_from(["float32", "float16", ""]),
    size=st.lists(st.integers(0, 40), max_size=3) | st.just([2**31, 3]),
    buffers=st.lists(st.binary(max_size=60), min_size=1, max_size=3),
)
def test_nothing_arrives_that_is_not_finite_float32_of_the_shape_expected(
    compression: int, dtype: str, size: list[int], buffers: list[bytes]
) -> None:
    first = runtime_pb2.Tensor(compression=compression, dtype=dtype, size=size, buffer=buffers[0])
    try:
        (arrived,) = gathered(
            first, *(runtime_pb2.Tensor(buffer=data) for data in buffers[1:]), compressions=COMPRESSIONS
        )
    except RefusedInput:
        return
    assert arrived.dtype == np.float32
    assert arrived.shape == tuple(size)
    assert arrived.shape[1:] == SPEC.row
    assert np.isfinite(arrived).all()


@pytest.mark.parametrize(
    "array",
    [
        BATCH.astype(np.float64),
        BATCH[0],
        BATCH[:, :2],
        BATCH.reshape(4, 3, 1),
        np.full((4, 3), np.nan, np.float32),
        -np.full((4, 3), np.inf, np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_what_could_not_be_received_is_not_sent(array: np.ndarray) -> None:
    assert require_rows(BATCH, SPEC) is BATCH
    with pytest.raises(MalformedTensor, match="inputs"):
        require_rows(array, SPEC)


def test_the_limit_is_that_of_our_own_frames() -> None:
    rows = MAX_FRAME_BYTES // 12
    Gathering([SPEC]).add(runtime_pb2.Tensor(dtype="float32", size=[rows, 3]))
    with pytest.raises(FrameTooLarge):
        Gathering([SPEC]).add(runtime_pb2.Tensor(dtype="float32", size=[rows + 1, 3]))
