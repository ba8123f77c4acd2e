import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.entries import Origin, check_indices, check_memory, entries_from_coordinates, entries_from_dense

INDICES = np.array([[0, 0, 1], [1, 2, 3], [0, 2, 0]])
VALUES = np.array([1.0, -2.0, 3.0])


def refused(message, *args, **kwargs):
    """The error for these coordinates is one line that holds every part of the message."""
    with pytest.raises(ArgumentError) as caught:
        entries_from_coordinates(*args, **kwargs)
    assert "\n" not in str(caught.value)
    for part in message:
        assert part in str(caught.value)


def test_dense_nan_is_missing_and_everything_else_is_kept_in_place():
    tensor = np.arange(24.0).reshape(2, 3, 4)
    tensor[1, 2, 3] = tensor[0, 0, 0] = np.nan
    entries = entries_from_dense(tensor, name="cube")
    assert (len(entries), entries.shape, entries.name) == (22, (2, 3, 4), "cube")
    assert entries.indices.dtype == np.int64
    assert np.array_equal(tensor[tuple(entries.indices.T)], entries.values)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float32, np.longdouble])
def test_dense_real_dtypes_become_float64(dtype):
    tensor = np.array([[0, 1], [1, 0]], dtype=dtype)
    entries = entries_from_dense(tensor)
    assert entries.values.dtype == np.float64
    assert entries.values.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("tensor", "parts"),
    [
        (np.array(3.0), ["shape ()", "at least 2"]),
        (np.ones(5), ["shape (5,)", "at least 2"]),
        (np.ones((3, 0, 2)), ["mode 1 the size 0", "at least 1"]),
        (np.full((2, 3), np.nan), ["all 6 entries are NaN"]),
        (np.ones((2, 2), dtype=complex), ["dtype complex128", "real numbers"]),
        (np.array([["a", "b"]]), ["dtype <U1", "real numbers"]),
        (np.array([[None, 1.0]]), ["Python objects", "real numbers"]),
        (np.zeros((2, 2), dtype="datetime64[s]"), ["datetime64", "real numbers"]),
        (np.array([[0.0, 1.0], [-np.inf, np.inf]]), ["entry (1, 0) is -inf", "finite"]),
        (np.array([[0.0, 1e200]]), ["entry (0, 1) is 1e+200", "1e+150"]),
        (np.array([[0.0, 1.0], [2.0, np.longdouble("1e4000")]]), ["entry (1, 1) is inf"]),
    ],
)
def test_dense_arrays_that_are_no_tensor_are_refused(tensor, parts):
    with pytest.raises(ArgumentError) as caught:
        entries_from_dense(tensor, origin=Origin("path", "'x.npy'"))
    for part in ["path: 'x.npy': ", *parts]:
        assert part in str(caught.value)


def test_coordinates_keep_their_order_and_drop_nan():
    values = np.array([1.0, np.nan, 3.0], dtype=np.float32)
    entries = entries_from_coordinates(INDICES.astype(np.uint8), values, [2, 3, 4])
    assert entries.indices.tolist() == [[0, 0, 1], [0, 2, 0]]
    assert entries.indices.dtype == np.int64
    assert entries.values.tolist() == [1.0, 3.0]


def test_coordinates_of_a_shape_beyond_int64_positions_are_accepted():
    shape = (2**40, 2**40, 2**40)
    entries = entries_from_coordinates(np.array([[0, 0, 2**40 - 1], [2**40 - 1, 0, 0]]), VALUES[:2], shape)
    assert entries.shape == shape


def test_index_out_of_range_is_refused_with_its_row_mode_and_range():
    bad = INDICES.copy()
    bad[1, 1] = 3
    refused(["row 1 is (1, 3, 3)", "mode 1 has size 3", "0 to 2"], bad, VALUES, [2, 3, 4])


def test_negative_index_is_refused():
    bad = INDICES.copy()
    bad[2, 0] = -1
    refused(["row 2 is (-1, 2, 0)", "mode 0 has size 2", "0 to 1"], bad, VALUES, [2, 3, 4])


def test_unsigned_index_beyond_int64_does_not_wrap_around():
    bad = np.array([[0, 0], [0, 2**64 - 1]], dtype=np.uint64)
    refused(["row 1 is (0, 18446744073709551615)", "0 to 3"], bad, VALUES[:2], [4, 4])


def test_duplicate_entries_are_refused_naming_the_first_repetition():
    indices = np.array([[1, 1], [0, 0], [2, 2], [0, 0], [1, 1]])
    refused(["rows 1 and 3", "both (0, 0)"], indices, np.ones(5), [3, 3])


@pytest.mark.parametrize(
    ("indices", "values", "shape", "parts"),
    [
        (INDICES, VALUES, [2, 3], ["'indices': has shape (3, 3)", "(number of entries, 2)"]),
        (INDICES[:2].T, VALUES[:2], [2, 3, 4], ["has shape (3, 2)", "transpose"]),
        (INDICES[0], VALUES, [2, 3, 4], ["has shape (3,)"]),
        (INDICES.astype(float), VALUES, [2, 3, 4], ["'indices': has dtype float64", "integers"]),
        (INDICES.astype(bool), VALUES, [2, 3, 4], ["'indices': has dtype bool", "integers"]),
        (INDICES, VALUES[:2], [2, 3, 4], ["array 'indices' has 3 rows", "'values' has 2"]),
        (INDICES, VALUES[:, None], [2, 3, 4], ["'values': has shape (3, 1)"]),
        (INDICES, VALUES * 1j, [2, 3, 4], ["'values': has dtype complex128"]),
        (INDICES, VALUES * np.nan, [2, 3, 4], ["none is a number"]),
        (INDICES[:0], VALUES[:0], [2, 3, 4], ["0 values"]),
        (INDICES, np.array([0, np.inf, 0]), [2, 3, 4], ["values[1] is inf"]),
        (INDICES, VALUES, [2.0, 3.0, 4.0], ["'shape': has dtype float64", "integer"]),
        (INDICES, VALUES, 24, ["'shape'", "one integer size per mode"]),
        (INDICES[:, :1], VALUES, [2], ["'shape'", "at least 2"]),
        (INDICES, VALUES, [2, 0, 4], ["'shape'", "mode 1 the size 0"]),
    ],
)
def test_coordinates_that_disagree_are_refused(indices, values, shape, parts):
    refused(["path: 'x.npz'", *parts], indices, values, shape, origin=Origin("path", "'x.npz'"))


def test_no_indices_to_predict_are_fine():
    assert check_indices(np.empty((0, 3), dtype=int), (2, 3, 4), "indices").shape == (0, 3)


def test_the_digest_tells_data_apart_by_place_value_and_shape() -> None:
    tensor = np.arange(6.0).reshape(2, 3)
    digest = entries_from_dense(tensor).sha256()
    assert digest == entries_from_dense(tensor.copy()).sha256()
    others = (tensor + 1, tensor.reshape(3, 2), tensor[:, ::-1])
    assert digest not in {entries_from_dense(other).sha256() for other in others}


def test_what_a_mask_hides_is_missing() -> None:
    """The -999 under the mask of a numpy masked array was fitted."""
    tensor = np.ma.masked_equal(np.array([[1.0, -999.0, 3.0], [4.0, 5.0, -999.0]]), -999.0)
    entries = entries_from_dense(tensor)
    assert entries.values.tolist() == [1.0, 3.0, 4.0, 5.0]
    assert entries.indices.tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]
    values = np.ma.masked_equal(np.array([1.0, -999.0]), -999.0)
    assert entries_from_coordinates(np.array([[0, 0], [1, 1]]), values, (2, 2)).values.tolist() == [1.0]


def test_values_whose_squares_vanish_are_refused() -> None:
    """Values of 1e-300 were taken for constants, and nothing was learnt without a word."""
    with pytest.raises(ArgumentError, match=r"the largest value is 1e-300 in size.*power of ten"):
        entries_from_dense(np.array([[0.0, 1e-300], [1e-301, 0.0]]))
    assert len(entries_from_dense(np.array([[0.0, 1e-300], [1.0, 0.0]]))) == 4
    assert len(entries_from_dense(np.zeros((2, 2)))) == 4


def test_what_needs_more_memory_than_there_is_is_refused_before_it_is_taken() -> None:
    check_memory(1, Origin("sizes"))
    with pytest.raises(ArgumentError, match=r"needs 4 EiB of memory and .* are free here"):
        check_memory(2**62, Origin("sizes", "here"))
