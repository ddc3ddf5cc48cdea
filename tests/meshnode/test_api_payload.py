"""Images out of bytes: what numpy writes is read back, and nothing else gets through or breaks the reader."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from meshnode.api.payload import images_from_npy
from protocol.errors import MalformedTensor


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@given(images=arrays(np.uint8, array_shapes(min_dims=3, max_dims=4, max_side=6)))
def test_what_numpy_saves_is_read_back(images: np.ndarray) -> None:
    np.testing.assert_array_equal(images_from_npy(_saved(images)), images)


@given(data=st.data())
def test_a_damaged_file_is_read_as_images_or_refused_and_nothing_else(data: st.DataObject) -> None:
    body = bytearray(_saved(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    for damaged in (bytes(body), cut):
        try:
            images = images_from_npy(damaged)
        except MalformedTensor:
            continue
        assert images.size == 24
        assert images.ndim in (3, 4)


@given(body=st.binary(max_size=300))
def test_garbage_is_refused(body: bytes) -> None:
    for start in (b"", b"\x93NUMPY\x01\x00"):
        with pytest.raises(MalformedTensor):
            images_from_npy(start + body)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 3, 4), np.int8),
        np.zeros((2, 3, 4), bool),
        np.asfortranarray(np.zeros((2, 3, 4), np.uint8)),
        np.zeros((3, 4), np.uint8),
        np.zeros((1, 1, 1, 1, 1), np.uint8),
        np.zeros((0, 3, 4), np.uint8),
        np.uint8(1),
    ],
    ids=["float32", "int8", "bool", "fortran", "2-d", "5-d", "empty", "scalar"],
)
def test_arrays_that_are_no_batch_of_images_are_refused(array: np.ndarray) -> None:
    with pytest.raises(MalformedTensor):
        images_from_npy(_saved(array))


@pytest.mark.parametrize("shape", ["(999999999, 999999999, 999999999)", "(1, 1, 25)", "(1, 1, 23)", "(-1, -1, 24)"])
def test_a_shape_that_the_bytes_do_not_bear_out_is_refused(shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with pytest.raises(MalformedTensor):
        images_from_npy(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24))
