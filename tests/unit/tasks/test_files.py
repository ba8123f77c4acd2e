import pickle

import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.files import read_entries, read_indices

TENSOR = np.array([[0.0, 1.5], [np.nan, -2.0], [3.0, 4.0]])
COORDINATES = {
    "indices": np.array([[0, 1], [2, 0]]),
    "values": np.array([1.5, 3.0]),
    "shape": np.array([3, 2]),
}


def refused(path, *parts, read=read_entries):
    with pytest.raises(ArgumentError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"path: {str(path)!r}: ", *parts):
        assert part in message


def test_npy_and_both_dense_npz_hold_the_same_tensor(tmp_path):
    np.save(tmp_path / "t.npy", TENSOR)
    np.savez(tmp_path / "one.npz", anything=TENSOR)
    np.savez_compressed(tmp_path / "named.npz", tensor=TENSOR, labels=np.array(["a", "b"]))
    for file in ("t.npy", "one.npz", "named.npz"):
        entries = read_entries(str(tmp_path / file))
        assert entries.values.tolist() == [0.0, 1.5, -2.0, 3.0, 4.0]
        assert (entries.shape, entries.name) == ((3, 2), file.split(".")[0])


def test_npz_of_coordinates_is_read_as_such(tmp_path):
    np.savez(tmp_path / "c.npz", **COORDINATES, extra=np.ones(7))
    entries = read_entries(tmp_path / "c.npz")
    assert entries.indices.tolist() == [[0, 1], [2, 0]]
    assert (entries.values.tolist(), entries.shape) == ([1.5, 3.0], (3, 2))


def test_the_content_decides_the_format_not_the_name(tmp_path):
    np.save(tmp_path / "t.npy", TENSOR)
    (tmp_path / "t.npy").rename(tmp_path / "t.dat")
    assert len(read_entries(tmp_path / "t.dat")) == 5


def test_missing_file_folder_and_foreign_files_are_refused(tmp_path):
    refused(tmp_path / "no.npy", "path: ", "does not exist")
    refused(tmp_path, "is a folder")
    for content in (b"", b"a,b,c\n1,2,3\n", pickle.dumps(TENSOR)):
        (tmp_path / "foreign").write_bytes(content)
        refused(tmp_path / "foreign", "neither a .npy nor a .npz")


def test_pickled_arrays_are_refused_without_running_them(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (ran.touch, ())

    objects = np.array([[Payload(), 1.0]], dtype=object)
    np.save(tmp_path / "p.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "p.npz", tensor=objects)
    refused(tmp_path / "p.npy", "pickled", "never loaded")
    refused(tmp_path / "p.npz", "pickled", "never loaded")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({}, ["no arrays"]),
        ({"a": TENSOR, "b": TENSOR}, ["'a', 'b'", "named 'tensor'"]),
        (
            {"indices": COORDINATES["indices"], "values": COORDINATES["values"]},
            ["'indices', 'values'", "'shape'"],
        ),
        ({"values": COORDINATES["values"]}, ["the arrays 'values'"]),
        ({**COORDINATES, "tensor": TENSOR}, ["both 'tensor' and 'indices'"]),
        ({f"a{i}": TENSOR for i in range(30)}, ["'a0'", "22 more"]),
        ({"tensor": TENSOR * 1j}, ["array 'tensor': has dtype complex128"]),
        (
            {**COORDINATES, "indices": np.array([[0, 1], [3, 0]])},
            ["array 'indices': row 1 is (3, 0)", "0 to 2"],
        ),
    ],
)
def test_npz_without_usable_arrays_is_refused_naming_what_it_holds(tmp_path, arrays, parts):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", *parts)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_files_cut_short_are_refused_whatever_numpy_raises(tmp_path, save, kept):
    with (tmp_path / "whole").open("wb") as opened:
        save(opened, np.random.default_rng(0).standard_normal((20, 30)))
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * kept)])
    refused(tmp_path / "cut")


def test_damaged_headers_and_members_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", tensor=TENSOR)
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[200] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(whole)
    refused(tmp_path / "x.npz", "damaged")
    np.save(tmp_path / "x.npy", TENSOR)
    whole = (tmp_path / "x.npy").read_bytes()
    for old, new in ((b"(3, 2)", b"(3, 2 "), (b"(3, 2)", b"(9, 9)"), (b"'<f8'", b"'<q9'")):
        (tmp_path / "x.npy").write_bytes(whole.replace(old, new))
        refused(tmp_path / "x.npy", "damaged")


def test_a_header_that_claims_more_than_memory_is_refused(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**10, 10**7)}
    with (tmp_path / "x.npy").open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
    refused(tmp_path / "x.npy", "does not fit in memory")


def test_indices_to_predict_come_from_npy_or_npz_and_are_checked(tmp_path):
    rows = np.array([[0, 1], [2, 0]])
    np.save(tmp_path / "i.npy", rows)
    np.savez(tmp_path / "i.npz", indices=rows, other=rows)
    for file in ("i.npy", "i.npz"):
        assert read_indices(tmp_path / file, (3, 2)).tolist() == rows.tolist()
    np.savez(tmp_path / "none.npz", rows=rows)
    refused(tmp_path / "none.npz", "'rows'", "'indices'", read=lambda path: read_indices(path, (3, 2)))
    refused(tmp_path / "i.npy", "row 1", "size 2", read=lambda path: read_indices(path, (2, 2)))
