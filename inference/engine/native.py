"""Libraries from C++ source, built once for a machine and kept beside Inductor's own."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def load(source: str, flags: Sequence[str]) -> ctypes.CDLL | None:
    """The library of a source; None where it cannot be built."""
    try:
        path = _build(source, flags)
        if path is None:
            return None
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # a file that was cut short
            path.unlink()
            path = _build(source, flags)
            return None if path is None else ctypes.CDLL(str(path))
    except (OSError, AttributeError, RuntimeError):  # no room, no right to write, no compiler
        return None


def _build(source: str, flags: Sequence[str]) -> Path | None:
    """The library's file, from the cache or from the compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "bayeszoo"
    path = folder / f"{hashlib.sha256(' '.join([*flags, source]).encode()).hexdigest()[:32]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file, library = Path(scratch) / "source.cpp", Path(scratch) / "library.so"
        file.write_text(source)
        command = [get_cpp_compiler(), *flags, "-shared", "-fPIC", str(file), "-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        os.replace(library, path)  # another process may have made the same file meanwhile
    return path
