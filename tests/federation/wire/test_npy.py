"""Arrays as bytes: the same as Flower's own, and nothing that a hostile sender can do with them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array

from protocl.errors import DataError
from protocl.federation.wire.npy import array_of, read_npy

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.zeros((0, 4), np.int8),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(12, dtype=np.float16)[::3],
    np.array(3),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_written_arrays_are_those_of_flower(array):
    ours, theirs = array_of(array), Array(np.ascontiguousarray(array).reshape(array.shape))
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data
    assert np.array_equal(ours.numpy(), array)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_npy_bytes_are_read_as_numpy_reads_them(array):
    read = read_npy(Array(array).data)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_a_header_of_any_length_is_read():
    claim = b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}"
    for padding in (0, 60, 90, 400):
        data = _npy(claim + b" " * padding) + np.arange(3, dtype=np.int16).tobytes()
        assert read_npy(data).tolist() == [0, 1, 2]


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 an archive",
        b"\x93NUMPY\x01\x00",
        # A claim of 8 TB with nothing behind it.
        _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        # Content that is longer or shorter than what is claimed, and shapes that no array has.
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}") + b"1234567",
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}") + b"12345",
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (-1, -3)}") + b"123456",
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (1.5, 2)}") + b"123456",
        # No bytes, as claimed, in lengths or a number of dimensions that numpy has not.
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (0, 1" + b"0" * 30 + b")}"),
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (0, 4611686018427387904, 8)}"),
        _npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (" + b"0," * 90 + b")}"),
        _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
        _npy(b"{'descr': '<f8', 'shape': (1,)}"),
        _npy(b"__import__('os')"),
    ],
)
def test_hostile_bytes_are_refused(data):
    with pytest.raises(DataError):
        read_npy(data)


def test_pickled_arrays_are_refused():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        read_npy(buffer.getvalue())
