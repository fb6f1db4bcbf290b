"""IDX files: every type of values, compressed or not, and one sentence for each kind of damage."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bayeszoo.data import read_idx

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: np.ndarray, dtype: str = "u1") -> bytes:
    """An IDX file, written by the format's description."""
    header = struct.pack(">HBB", 0, CODES[dtype], array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_comes_back_in_native_order(tmp_path: Path, dtype: str, compressed: bool) -> None:
    # 258 and -3 tell the order of bytes and the sign apart where the type has them
    values = np.arange(24).reshape(2, 3, 4) + (0 if dtype in ("u1", "i1") else 258)
    if dtype != "u1":
        values[0, 0, 0] = -3
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(idx(values, dtype)) if compressed else idx(values, dtype))
    found = read_idx(path)
    assert found.dtype.isnative
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, values)


def test_known_bytes(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"  # the content tells whether it is compressed: this one is not
    path.write_bytes(bytes.fromhex("00000801 00000003 07 00 ff"))
    assert read_idx(str(path)).tolist() == [7, 0, 255]


def test_values_span_several_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024))  # three times what one read takes
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(values), 1))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), values)


GOOD = idx(np.arange(200).reshape(2, 10, 10))
# Without the time of day: the contents are the cases' names, which must be the same in every test process.
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not an IDX file: it begins with the bytes \(none\)"),
        (b"\x89PNG\r\n", r"is not an IDX file: it begins with the bytes 89 50 4e 47"),
        (b"\0\0\x07\x01" + GOOD[4:], r"is not an IDX file: it begins with the bytes 00 00 07 01"),
        (b"\0\0\x08\0" + GOOD[4:], r"is not an IDX file"),
        (GOOD[:9], r"is cut off within its header of 3 sizes"),
        (GOOD[:-1], r"should hold 200 bytes of values \(shape \(2, 10, 10\)\), but holds only 199"),
        (GOOD + b"\0", r"should hold 200 bytes .* but holds more"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + GOOD, r"but holds only 216"),  # 8e28 bytes claimed, none of them set aside
        (gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8, mtime=0), r"but holds only 0"),
        (PACKED[:-9], r"cannot be unpacked \(Compressed file ended .*delete it and fetch it again"),
        (PACKED[:-8] + b"\0" * 8, r"cannot be unpacked \(CRC check failed"),
        (PACKED[:10] + b"\xff" * 20, r"cannot be unpacked \(Error -3 while decompressing"),
        (gzip.compress(GOOD[:-1], mtime=0), r"but holds only 199"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"^there is no file '.*'; give the path of an IDX file"):
            read_idx(path)
