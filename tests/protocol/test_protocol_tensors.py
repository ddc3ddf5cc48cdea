"""Tensors arrive bit by bit as they were sent, or are refused before anything of them is read."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import limits
from protocol.codec import decode_as
from protocol.errors import FrameTooLarge, MalformedMessage, MalformedTensor
from protocol.tensors import (
    TensorHeader,
    TensorHeaders,
    announced_bytes,
    pack_tensors,
    require_header,
    require_tensor,
    unpack_tensors,
)

DTYPES = ["bool", "float16", "float32", "float64", "int32", "int64", "uint8"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def joined(views) -> bytes:
    return b"".join(views)


def decoded(claims: object) -> tuple[TensorHeader, ...]:
    """Headers as they come from the wire."""
    headers = decode_as(msgpack.packb(claims), TensorHeaders, max_bytes=limits.MAX_MESSAGE_HEADER_BYTES)
    announced_bytes(headers)
    return headers


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4))
def test_tensors_survive_bit_by_bit(tensors):
    headers, views = pack_tensors(tensors)
    body = joined(views)
    assert announced_bytes(headers) == len(body)
    returned = unpack_tensors(headers, body)
    assert list(returned) == list(tensors)
    for name, array in tensors.items():
        assert returned[name].dtype == array.dtype
        assert returned[name].shape == array.shape
        assert returned[name].tobytes() == array.tobytes()


def test_contiguous_memory_is_not_copied_either_way():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    _, views = pack_tensors({"x": array})
    assert np.shares_memory(np.frombuffer(views[0], np.uint8), array)
    body = joined(views)
    returned = unpack_tensors([TensorHeader("x", "float32", (2, 3))], body)["x"]
    assert np.shares_memory(returned, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("array", [np.arange(12, dtype=">f4").reshape(3, 4), np.arange(12.0).reshape(3, 4).T[::2]])
def test_other_byte_orders_and_strides_are_put_right(array):
    headers, views = pack_tensors({"x": array})
    np.testing.assert_array_equal(unpack_tensors(headers, joined(views))["x"], array)


@pytest.mark.parametrize("buffer", [bytes, bytearray, lambda body: np.frombuffer(bytearray(body), np.uint8).data])
def test_received_tensors_are_as_writable_as_the_buffer(buffer):
    headers, views = pack_tensors({"x": np.ones(5, np.float64), "y": np.ones(3, np.uint8)})
    body = buffer(joined(views))
    for tensor in unpack_tensors(headers, body).values():
        assert tensor.flags.writeable == (not memoryview(body).readonly)
        assert np.shares_memory(tensor, np.frombuffer(body, np.uint8))


def test_received_tensors_are_aligned_and_copied_only_where_the_bytes_are_not():
    headers, views = pack_tensors({"odd": np.ones(3, np.uint8), "x": np.arange(5, dtype=np.float64)})
    body = bytearray(joined(views))
    tensors = unpack_tensors(headers, body)
    assert all(tensor.flags.aligned for tensor in tensors.values())
    body[:] = bytes(len(body))
    assert not tensors["odd"].any()
    np.testing.assert_array_equal(tensors["x"], np.arange(5))


@pytest.mark.parametrize("array", [np.array(["a"]), np.ones(2, complex), np.array([object()]), np.ones(2, np.int16)])
def test_types_that_do_not_travel_are_refused_at_the_sender(array):
    with pytest.raises(MalformedTensor):
        pack_tensors({"x": array})


@pytest.mark.parametrize(
    "tensors",
    [
        {"": np.zeros(1)},
        {"x" * 65: np.zeros(1)},
        {"x": np.zeros((1,) * 7)},
        {"x": np.broadcast_to(np.uint8(0), (limits.MAX_FRAME_BYTES + 1,))},
        {str(i): np.zeros(1) for i in range(33)},
    ],
)
def test_what_no_header_may_say_is_refused_at_the_sender(tensors):
    with pytest.raises(MalformedTensor):
        pack_tensors(tensors)


def test_more_than_a_frame_holds_is_refused_at_the_sender():
    largest = np.broadcast_to(np.uint8(0), (limits.MAX_FRAME_BYTES,))
    with pytest.raises(FrameTooLarge):
        pack_tensors({"x": largest, "y": np.zeros(1, np.uint8)})


@pytest.mark.parametrize(
    "claims",
    [
        [["x", "float32", [-1]], ["y", "float32", [1]]],
        [["x", "object", [1]]],
        [["x", "f4", [1]]],
        [["x", "uint8", [1] * 7]],
        [["x", "uint8", [1.0]]],
        [["x", "uint8", [True]]],
        [["x", "uint8", [limits.MAX_FRAME_BYTES + 1]]],
        [["x", "uint8", 1]],
        [["x", "uint8"]],
        [["", "uint8", [1]]],
        [["x" * 65, "uint8", [1]]],
        [[b"x", "uint8", [1]]],
        [[str(i), "uint8", [0]] for i in range(33)],
        {"x": ["uint8", [1]]},
    ],
)
def test_a_header_out_of_its_bounds_is_not_decoded(claims):
    with pytest.raises(MalformedMessage):
        decoded(claims)


def test_a_name_that_is_used_twice_is_refused():
    with pytest.raises(MalformedTensor):
        decoded([["x", "uint8", [1]], ["y", "uint8", [1]], ["x", "uint8", [1]]])


@pytest.mark.parametrize(
    "claims",
    [
        [["x", "uint8", [2**24] * 6]],  # 0 modulo 2^64: a product of fixed width would fit an empty body
        [["x", "float64", [2**23 + 1]]],
        [["x", "uint8", [2**25]], ["y", "uint8", [2**25]], ["z", "uint8", [1]]],
    ],
)
def test_more_than_a_frame_holds_is_refused_as_it_is_announced(claims):
    with pytest.raises(FrameTooLarge) as refused:
        decoded(claims)
    assert limits.MAX_FRAME_BYTES < refused.value.size_bytes <= limits.MAX_COUNTER


def test_a_dimension_of_none_makes_the_others_harmless():
    huge = decoded([["x", "uint8", [2**26, 2**26, 0]]])
    assert announced_bytes(huge) == 0
    assert unpack_tensors(huge, b"")["x"].shape == (2**26, 2**26, 0)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([TensorHeader("x", "float32", (2,))], bytes(7)),
        ([TensorHeader("x", "float32", (2,))], bytes(9)),
        ([TensorHeader("x", "uint8", (2,)), TensorHeader("y", "uint8", (2,))], bytes(3)),
        ([TensorHeader("x", "bool", (2,))], b"\x01\x02"),
        ([TensorHeader("x", "bool", ())], b"\xff"),
        ([], b"left over"),
    ],
)
def test_headers_that_contradict_the_body_are_refused(headers, body):
    with pytest.raises(MalformedTensor):
        unpack_tensors(headers, body)


@given(
    st.binary(max_size=64),
    st.lists(
        st.tuples(
            st.sampled_from("xyz"),
            st.sampled_from([*DTYPES, "f4", ""]),
            st.lists(st.integers(-1, 2**64 - 1), max_size=3),
        ),
        max_size=3,
    ),
)
def test_no_headers_and_body_whatever_escape_the_documented_errors(body, claims):
    try:
        tensors = unpack_tensors(decoded(claims), body)
    except (MalformedMessage, MalformedTensor, FrameTooLarge):
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(body)


FEATURES = {"features": np.ones((2, 3), np.float32)}


def test_a_required_header_is_returned_as_it_is():
    headers = decoded([["other", "uint8", [1]], ["features", "float32", [2, 3]]])
    for num_dims in ((2,), (1, 2), range(3)):
        assert require_header(headers, "features", dtype="float32", num_dims=num_dims) is headers[1]


@pytest.mark.parametrize(
    ("name", "dtype", "num_dims"),
    [("absent", "float32", (2,)), ("features", "float64", (2,)), ("features", "float32", (1, 3))],
)
def test_a_header_that_is_absent_or_something_else_is_refused(name, dtype, num_dims):
    with pytest.raises(MalformedTensor) as refused:
        require_header(decoded([["features", "float32", [2, 3]]]), name, dtype=dtype, num_dims=num_dims)
    assert refused.value.name == name


def test_a_required_tensor_is_returned_as_it_is():
    assert require_tensor(FEATURES, "features", dtype="float32", shape=(None, 3), finite=True) is FEATURES["features"]


@pytest.mark.parametrize(
    ("tensors", "dtype", "shape"),
    [
        ({}, "float32", (None, 3)),
        (FEATURES, "float64", (None, 3)),
        (FEATURES, "float32", (None, 4)),
        (FEATURES, "float32", (3, None)),
        (FEATURES, "float32", (None,)),
        (FEATURES, "float32", (None, 3, None)),
        ({"features": np.array([[0, np.nan, 0]], np.float32)}, "float32", (None, 3)),
        ({"features": np.array([[0, np.inf, 0]], np.float32)}, "float32", (None, 3)),
    ],
)
def test_a_tensor_that_is_absent_or_something_else_is_refused(tensors, dtype, shape):
    with pytest.raises(MalformedTensor) as refused:
        require_tensor(tensors, "features", dtype=dtype, shape=shape, finite=True)
    assert refused.value.name == "features"
