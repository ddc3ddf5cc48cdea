"""Tensors arrive bit by bit as they were sent, or are refused before anything of them is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedTensor
from protocol.tensors import TensorHeader, pack_tensors, require_tensor, unpack_tensors

DTYPES = ["bool", "float16", "float32", "float64", "int32", "int64", "uint8"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def joined(views) -> bytes:
    return b"".join(views)


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4))
def test_tensors_survive_bit_by_bit(tensors):
    headers, views = pack_tensors(tensors)
    returned = unpack_tensors(headers, joined(views))
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


def test_received_tensors_are_aligned_and_read_only():
    headers, views = pack_tensors({"odd": np.ones(3, np.uint8), "x": np.ones(5, np.float64)})
    for tensor in unpack_tensors(headers, joined(views)).values():
        assert tensor.flags.aligned
        assert not tensor.flags.writeable


@pytest.mark.parametrize("array", [np.array(["a"]), np.ones(2, complex), np.array([object()]), np.ones(2, np.int16)])
def test_types_that_do_not_travel_are_refused_at_the_sender(array):
    with pytest.raises(MalformedTensor):
        pack_tensors({"x": array})


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([TensorHeader("x", "float32", (2,))], bytes(7)),
        ([TensorHeader("x", "float32", (2,))], bytes(9)),
        ([TensorHeader("x", "float32", (-1,)), TensorHeader("y", "float32", (1,))], b""),
        ([TensorHeader("x", "object", (1,))], bytes(8)),
        ([TensorHeader("x", "uint8", (1,)), TensorHeader("x", "uint8", (1,))], bytes(2)),
        ([TensorHeader("x", "bool", (2,))], b"\x01\x02"),
        ([TensorHeader("x", "uint8", (1,) * 7)], bytes(1)),
        ([TensorHeader("", "uint8", (1,))], bytes(1)),
        ([TensorHeader(str(i), "uint8", (0,)) for i in range(33)], b""),
        ([], b"left over"),
    ],
)
def test_headers_that_contradict_the_limits_or_the_body_are_refused(headers, body):
    with pytest.raises(MalformedTensor):
        unpack_tensors(headers, body)


def test_a_product_of_dimensions_cannot_wrap_around():
    # 2^24 to the sixth is 0 modulo 2^64: a fixed-width product would fit the empty body.
    huge = TensorHeader("x", "uint8", (2**24,) * 6)
    with pytest.raises(FrameTooLarge):
        unpack_tensors([huge], b"")


def test_more_than_a_frame_holds_is_refused_at_the_sender():
    one_too_many = np.broadcast_to(np.uint8(0), (limits.MAX_FRAME_BYTES,))
    with pytest.raises(FrameTooLarge):
        pack_tensors({"x": one_too_many, "y": np.zeros(1, np.uint8)})


@given(
    st.binary(max_size=64),
    st.lists(st.tuples(st.sampled_from([*DTYPES, "f4", ""]), st.lists(st.integers(), max_size=3))),
)
def test_no_header_and_body_whatever_escape_the_two_errors(body, claims):
    headers = [TensorHeader(str(i), dtype, tuple(shape)) for i, (dtype, shape) in enumerate(claims)]
    try:
        tensors = unpack_tensors(headers, body)
    except (MalformedTensor, FrameTooLarge):
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(body)


FEATURES = {"features": np.ones((2, 3), np.float32)}


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
