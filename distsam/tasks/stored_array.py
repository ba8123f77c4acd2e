"""An array in a .npz file, read in blocks of rows: numpy itself reads such an array whole or not at all."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import IO

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Origin

NPY_MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SKIPPED_BYTES = 2**20


def no_array(name: str, origin: Origin) -> ArgumentError:
    """The error about a member of a .npz file that is no array."""
    return origin.error(f"'{name}' is no numpy array; write the file with numpy.savez")


class StoredArray:
    """One array of a .npz file, compressed or not, of which only a block at a time is in memory.

    Args:
        archive: the open file.
        name: of the array.
        origin: what to name the file by.

    Attributes:
        dtype, shape: of the array.

    Raises:
        ArgumentError: it is no array.
        ValueError: it holds Python objects, or a header that cannot be read.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, origin: Origin) -> None:
        member = f"{name}.npy"
        self._archive, self._member = archive, member if member in archive.namelist() else name
        with self._archive.open(self._member) as stream:
            if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise no_array(name, origin)
        with self._archive.open(self._member) as stream:
            self.shape, self._is_fortran, self.dtype = _header(stream)

    def blocks(self, num_rows: int) -> Iterator[np.ndarray]:
        """The array in blocks of `num_rows` rows, the last one smaller; the array has one or two dims.

        An array that is stored column by column is read at as many places at once as it has columns.

        Raises:
            ValueError, zipfile.BadZipFile, zlib.error: the file is damaged or cut short.
        """
        length, width = self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))
        by_column = self._is_fortran and len(self.shape) == 2
        with ExitStack() as stack:
            streams = [stack.enter_context(self._archive.open(self._member)) for _ in range(width if by_column else 1)]
            for column, stream in enumerate(streams):
                _header(stream)
                _skip(stream, column * length * self.dtype.itemsize)
            for start, stop in pairwise([*range(0, length, num_rows), length]):
                if by_column:
                    yield np.stack([self._read(stream, stop - start) for stream in streams], axis=1)
                else:
                    yield self._read(streams[0], (stop - start) * width).reshape(stop - start, *self.shape[1:])
            # The checksum of the member is compared where its end is met.
            streams[-1].read(1)

    def _read(self, stream: IO[bytes], count: int) -> np.ndarray:
        content = stream.read(count * self.dtype.itemsize)
        if len(content) < count * self.dtype.itemsize:
            raise ValueError(f"{self._member} ends before its last row")
        return np.frombuffer(content, dtype=self.dtype)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether column by column, dtype; the stream then stands at the first number."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"a header of version {version}, which is none of an array of numbers")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return shape, is_fortran, dtype


def _skip(stream: IO[bytes], num_bytes: int) -> None:
    # Read, not sought: of what is jumped over no checksum can be taken.
    while num_bytes > 0 and (skipped := len(stream.read(min(num_bytes, _SKIPPED_BYTES)))):
        num_bytes -= skipped
