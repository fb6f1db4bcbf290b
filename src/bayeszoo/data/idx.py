"""The IDX format of MNIST and its successors: a small header, then the values of one array.

    2 bytes of zero | 1 byte: type of the values | 1 byte: number of dimensions D
    D big-endian 32-bit sizes | the values, row by row, big-endian

Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits ("The IDX file format").
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_GZIP_MAGIC = b"\x1f\x8b"

_CHUNK = 1 << 20  # bytes a read


def read_idx(path: str | Path) -> NDArray[np.generic]:
    """Reads one array from an IDX file, compressed by gzip or not (the content tells, not the name).

    Args:
        path: the file.

    Returns:
        The array, in the shape of the header and in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one sentence, for a file that is not IDX, is damaged, or holds more or fewer values than its header says.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'; give the path of an IDX file, compressed by gzip or not")
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            return _parse(path, raw)
        try:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _parse(path, unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"'{path}' is compressed by gzip and cannot be unpacked ({str(error).rstrip('.')}), "
                "so it is cut off or damaged; delete it and fetch it again"
            ) from None


def _parse(path: Path, file: BinaryIO | gzip.GzipFile) -> NDArray[np.generic]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
        raise ValueError(
            f"'{path}' is not an IDX file: it begins with the bytes {magic.hex(' ') or '(none)'} instead of 00 00, a type "
            "from 08 to 0e and a number of dimensions; give the file of images or labels itself"
        )
    sizes = file.read(4 * magic[3])
    shape = tuple(int(size) for size in np.frombuffer(sizes[: len(sizes) // 4 * 4], dtype=">u4"))
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"'{path}' is cut off within its header of {magic[3]} sizes; delete it and fetch it again")
    dtype = np.dtype(_TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    values = _read_up_to(file, expected + 1)
    if len(values) != expected:
        found = f"only {len(values):,}" if len(values) < expected else "more"
        raise ValueError(
            f"'{path}' should hold {expected:,} bytes of values (shape {shape}), but holds {found}, "
            "so it is cut off or damaged; delete it and fetch it again"
        )
    array = np.frombuffer(values, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_up_to(file: BinaryIO | gzip.GzipFile, limit: int) -> bytearray:
    """Returns the next bytes, at most `limit`; in pieces, because one read would set aside all that a wrong header claims."""
    values = bytearray()
    while len(values) < limit and (piece := file.read(min(_CHUNK, limit - len(values)))):
        values += piece
    return values
