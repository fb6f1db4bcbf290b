"""Many steps in one call: the kernels of a compiled step, called in a loop of C.

For a small model the time goes into calling the step: Inductor's wrapper in Python allocates, checks and passes some fifty
tensors for a microsecond of arithmetic. A step whose wrapper does nothing but allocate and call its own C++ kernels always
calls them with the same addresses, as everything is updated in place, but for the rows of the tables, which lie at a fixed
distance from each other. Those calls are recorded once and repeated by a small C function.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .inductor import Compiled

_HARMLESS = {
    "assert_size_stride",
    "assert_size_stride_grouped",
    "assert_alignment",
    "empty_strided_cpu",
    "reinterpret_tensor",
    "_reinterpret_tensor",
}


@dataclass(frozen=True)
class Replay:
    """A recorded step.

    Attributes:
        run: (first row, number of steps).
    """

    run: Callable[[int, int], None]
    kept: tuple[Any, ...]


def record(compiled: Compiled, inputs: Sequence[Tensor], tables: Mapping[str, Tensor]) -> Replay | None:
    """Records the kernel calls of a compiled step, made on row 0 of the tables.

    The recording runs no kernel: it changes nothing.

    Args:
        inputs: what the step is called with; rows of tables are their row 0.
        tables: (rows, numbers) each.

    Returns:
        None where the step does anything but call its own kernels (a library's matrix product, a sampler).
    """
    names = _kernels(getattr(compiled.output, "source_code", None) or "")
    wrapper = getattr(compiled.output, "current_callable", None)
    space: dict[str, Any] | None = getattr(getattr(wrapper, "__func__", wrapper), "__globals__", None)
    if not names or space is None or sys.platform == "win32" or any(name not in space for name in names):
        return None
    kernels = {name: space[name] for name in names}
    paths = {name: getattr(getattr(k, "__self__", None), "__file__", None) for name, k in kernels.items()}
    if not all(paths.values()):
        return None
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda *args: calls.append((name, args))

    try:
        space.update({name: recorder(name) for name in names})
        compiled.call(*inputs)
    finally:
        space.update(kernels)
    if not all(isinstance(a, Tensor) for _, args in calls for a in args):
        return None
    libraries = {name: ctypes.CDLL(path) for name, path in paths.items()}
    functions = [ctypes.cast(libraries[name].kernel, ctypes.c_void_p).value for name, _ in calls]
    addresses = [a.data_ptr() for _, args in calls for a in args]
    strides = [_stride(address, tables) for address in addresses]
    loop = _loop([len(args) for _, args in calls])
    if loop is None:
        return None
    c_functions = (ctypes.c_void_p * len(functions))(*functions)
    c_addresses = (ctypes.c_void_p * len(addresses))(*addresses)
    c_strides = (ctypes.c_long * len(strides))(*strides)

    def run(first: int, count: int) -> None:
        loop(first, count, c_functions, c_addresses, c_strides)

    return Replay(run, (calls, libraries, list(inputs)))


def _stride(address: int, tables: Mapping[str, Tensor]) -> int:
    """Bytes from one step's address to the next: the length of a table's row, 0 for everything else."""
    for table in tables.values():
        row = table.shape[1] * table.element_size()
        if table.data_ptr() <= address < table.data_ptr() + row:
            return row
    return 0


def _kernels(source: str) -> list[str]:
    """The kernels that the generated wrapper calls; none if it does anything else than allocate and call them."""
    if not source:
        return []
    tree = ast.parse(source)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "call"]
    if len(calls) != 1:
        return []
    names: list[str] = []
    for statement in calls[0].body:
        if isinstance(statement, (ast.Delete, ast.Return, ast.Pass)):
            continue
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Assign) and isinstance(value, ast.Name):
            continue  # another name for a buffer, or the unpacking of the arguments
        if not isinstance(value, ast.Call):
            return []
        if ast.unparse(value) == "args.clear()":
            continue
        name = ast.unparse(value.func)
        if isinstance(statement, ast.Expr) and name.startswith("cpp_fused"):
            names.append(name)
        elif name not in _HARMLESS:
            return []
    return list(dict.fromkeys(names))


def _loop(arguments: Sequence[int]) -> Callable[..., None] | None:
    """A C function (first, count, functions, addresses, strides) that calls each function with its own share of addresses."""
    body, at = [], 0
    for k, number in enumerate(arguments):
        types = ", ".join(["void *"] * number)
        values = ", ".join(f"a[{j}] + i * s[{j}]" for j in range(at, at + number))
        body.append(f"((void (*)({types})) f[{k}])({values});")
        at += number
    source = (
        "void run(long first, long count, void **f, char **a, long *s) {\n"
        "  for (long i = first; i < first + count; i++) {\n    " + "\n    ".join(body) + "\n  }\n}\n"
    )
    path = _build(source)
    if path is None:
        return None
    function = ctypes.CDLL(str(path)).run
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    return function  # type: ignore[no-any-return]


def _build(source: str) -> Path | None:
    """The library of a C source, from the cache beside Inductor's or from the compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "bayeszoo"
    path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file, library = Path(scratch) / "loop.c", Path(scratch) / "loop.so"
        file.write_text(source)
        command = [get_cpp_compiler(), "-x", "c++", "-O1", "-shared", "-fPIC", str(file), "-o", str(library)]
        file.write_text(f'extern "C" {source}')
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        os.replace(library, path)  # another process may have made the same file meanwhile
    return path
