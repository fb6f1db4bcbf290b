"""Many steps in one call: the kernels of a compiled step, called in a loop of C.

For a small model the time goes into calling the step: Inductor's wrapper in Python allocates, checks and passes some fifty
tensors for a microsecond of arithmetic. Everything is updated in place, so a step always calls its kernels with the same
addresses, but for the rows of the tables, which lie at a fixed distance from each other. The calls are recorded once and repeated by
a small C function: Inductor's own C++ kernels, matrix products by our own code or torch's BLAS, triangular solves, and
the gathering of a batch's rows. A step that does anything else is not recorded.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import native, passes, products
from .inductor import Compiled

_HARMLESS = {
    "assert_size_stride",
    "assert_size_stride_grouped",
    "assert_alignment",
    "assert_tensor_metadata",
    "empty_strided_cpu",
    "reinterpret_tensor",
    "_reinterpret_tensor",
}
_PRODUCTS = {"extern_kernels.mm", "extern_kernels.addmm"}
_OPERATORS = {
    "torch.ops.bayeszoo.rows.default",
    "torch.ops.bayeszoo.matmul.default",
    "torch.ops.aten.linalg_solve_triangular.default",
}


#: A compiler may make of memcpy an instruction that takes a third longer for a row of some hundred bytes.
_COPY = """
struct __attribute__((packed, may_alias)) part { char bytes[16]; };
typedef int __attribute__((may_alias)) word;
typedef long __attribute__((may_alias)) two_words;
static inline void copy(char *to, const char *from, long size) {
  for (; size >= 16; size -= 16, to += 16, from += 16) *(part *)to = *(const part *)from;
  for (; size > 0; size--) *to++ = *from++;
}
"""


#: Rows of so many bytes are moved as one number.
_WORDS = {4: "word", 8: "two_words"}

#: Bytes of rows to come that the nearest cache has room for.
_NEAR = 4096


class _CannotRecord(Exception):
    """A call that the C loop has no form for."""


@dataclass(frozen=True)
class Call:
    """One call: `code` is C with {0}, {1}, ... for the addresses of `tensors` and {f} for the function."""

    function: int
    code: str
    tensors: tuple[Tensor, ...]


class Rows(Call):
    """Rows of a table: `tensors` are the table, their numbers and the result."""


@dataclass(frozen=True)
class Replay:
    """A recorded step.

    Attributes:
        run: (first row, number of steps).
        kept: what the recorded addresses belong to.
    """

    run: Callable[[int, int], None]
    kept: tuple[Any, ...]


def record(compiled: Compiled, inputs: Sequence[Tensor], tables: Mapping[str, Tensor]) -> Replay | None:
    """Records the calls of a compiled step, made on row 0 of the tables.

    None of the kernels that update something is run.

    Args:
        inputs: what the step is called with; rows of tables are their row 0.
        tables: (rows, numbers) each.

    Returns:
        None where the step does anything that the loop has no form for.
    """
    names = _kernels(getattr(compiled.output, "source_code", None) or "")
    wrapper = getattr(compiled.output, "current_callable", None)
    space: dict[str, Any] | None = getattr(getattr(wrapper, "__func__", wrapper), "__globals__", None)
    if not names or space is None or sys.platform == "win32" or any(name not in space for name in names):
        return None
    paths = {name: getattr(getattr(space[name], "__self__", None), "__file__", None) for name in names}
    if not all(paths.values()):
        return None
    calls: list[Call] = []
    libraries = [ctypes.CDLL(path) for path in paths.values()]
    kernels = {name: _address(library, space[name].__name__) for name, library in zip(names, libraries, strict=True)}
    try:
        with _recording(space, kernels, calls):
            compiled.call(*inputs)
    except (_CannotRecord, AttributeError):
        return None
    functions = [call.function for call in calls]
    addresses = [t.data_ptr() for call in calls for t in call.tensors]
    strides = [_stride(address, tables) for address in addresses]
    loop = _loop(calls)
    if loop is None:
        return None
    c_functions = (ctypes.c_void_p * len(functions))(*functions)
    c_addresses = (ctypes.c_void_p * len(addresses))(*addresses)
    c_strides = (ctypes.c_long * len(strides))(*strides)

    def run(first: int, count: int) -> None:
        loop(first, count, c_functions, c_addresses, c_strides)

    return Replay(run, (calls, libraries, list(inputs)))


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


@contextlib.contextmanager
def _recording(space: dict[str, Any], kernels: Mapping[str, int], calls: list[Call]) -> Iterator[None]:
    """Puts recorders in the place of everything that the wrapper calls."""
    before = {name: space[name] for name in (*kernels, "extern_kernels", "torch") if name in space}

    def kernel(function: int) -> Callable[..., None]:
        def note(*tensors: Any) -> None:
            if not all(isinstance(t, Tensor) for t in tensors):
                raise _CannotRecord
            types = ", ".join(["void *"] * len(tensors))
            values = ", ".join(f"{{{k}}}" for k in range(len(tensors)))
            calls.append(Call(function, f"((void (*)({types})) {{f}})({values});", tensors))

        return note

    try:
        space.update({name: kernel(function) for name, function in kernels.items()})
        space["extern_kernels"] = _Products(calls)
        space["torch"] = _Torch(calls)
        yield
    finally:
        space.update(before)


class _Products:
    """Matrix products as calls of BLAS."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def mm(self, a: Tensor, b: Tensor, *, out: Tensor) -> None:
        """out = a b."""
        _add_product(self.calls, a, b, out)

    def addmm(self, bias: Tensor, a: Tensor, b: Tensor, *, out: Tensor, alpha: float = 1, beta: float = 1) -> None:
        """out = bias + a b."""
        if alpha != 1 or beta != 1 or bias.dim() == 0 or bias.shape[-1] != out.shape[1] or bias.stride(-1) != 1:
            raise _CannotRecord
        size = bias.shape[-1] * bias.element_size()
        step = bias.stride(0) * bias.element_size() if bias.dim() == 2 and bias.shape[0] > 1 else 0
        code = f"for (long r = 0; r < {out.shape[0]}; r++) __builtin_memcpy({{0}} + r * {size}, {{1}} + r * {step}, {size});"
        self.calls += [Call(0, code, (out, bias)), _product(a, b, out, add=True)]


class _Torch:
    """The operators that have a form in C; everything else is torch's."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.ops = self.aten = self.bayeszoo = self
        self.rows = _Overload(self._rows)
        self.matmul = _Overload(self._matmul)
        self.linalg_solve_triangular = _Overload(self._solve)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _rows(self, x: Tensor, index: Tensor) -> Tensor:
        out = x[index]
        if not (x.is_contiguous() and index.is_contiguous() and len(x)):
            raise _CannotRecord
        size = x[0].numel() * x.element_size()
        # Rows lie anywhere in memory: those to come are asked for early.
        ahead = min(8, max(1, _NEAR // max(1, size)))
        if size in _WORDS:
            moved = f"(({_WORDS[size]} *) ({{2}}))[r] = ((const {_WORDS[size]} *) ({{0}}))[j]"
        else:
            moved = f"copy({{2}} + r * {size}, {{0}} + j * {size}, {size})"
        code = (
            f"for (long r = 0; r < {len(index)}; r++) {{{{ const long *q = (const long *) ({{1}}); if (r + {ahead} < {len(index)}) "
            f"for (long c = 0; c < {min(size, _NEAR)}; c += 64) __builtin_prefetch({{0}} + q[r + {ahead}] * {size} + c); "
            f"long j = q[r] < 0 ? q[r] + {len(x)} : q[r]; {moved}; }}}}"
        )
        self.calls.append(Rows(0, code, (x, index, out)))
        return out

    def _matmul(self, a: Tensor, b: Tensor) -> Tensor:
        if torch.get_num_threads() > 1 or (passes.onednn_leads() and not products.large_too()):
            raise _CannotRecord  # oneDNN has more threads, or better code
        out = a.new_empty(a.shape[0], b.shape[1])
        _add_product(self.calls, a, b, out)
        return out

    def _solve(self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
        out = torch.linalg.solve_triangular(a, b, upper=upper)
        while a.dim() > 2 and b.dim() == a.dim() and a.shape[0] == b.shape[0] == 1:
            a, b = a[0], b[0]
        rows, leading = _layout(a)
        if not left or unitriangular or b.dim() != 2 or b.shape[1] != 1 or b.stride(0) != 1:
            raise _CannotRecord
        size = len(b)
        triangle = "U" if upper != rows else "L"  # BLAS sees the transpose of a matrix that is stored by rows
        code = (
            f"__builtin_memcpy({{1}}, {{2}}, {size * b.element_size()}); {{{{ int n = {size}, one = 1, ld = {leading}; {_ctype(a)} w = 1; "
            f"((void (*)(const char *, const char *, const char *, const char *, int *, int *, void *, void *, int *, void *, int *)) {{f}})"
            f'("L", "{triangle}", "{"T" if rows else "N"}", "N", &n, &one, &w, {{0}}, &ld, {{1}}, &n); }}}}'
        )
        self.calls.append(Call(_blas("trsm", a), code, (a, out, b)))
        return out


@dataclass(frozen=True)
class _Overload:
    default: Callable[..., Tensor]


def _product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> Call:
    """out (m, n) = a (m, k) b (k, n), as the product of the transposes that BLAS sees in rows."""
    (m, k), n = a.shape, b.shape[1]
    ours = products.call(a, b, out, add=add)
    if ours is not None:
        return Call(*ours)
    (a_rows, a_leading), (b_rows, b_leading) = _layout(a), _layout(b)
    if out.stride() != (n, 1) and m * n > 1:
        raise _CannotRecord
    code = (
        f"{{{{ int m = {m}, n = {n}, k = {k}, la = {a_leading}, lb = {b_leading}; {_ctype(a)} w = 1, z = {int(add)}; "
        "((void (*)(const char *, const char *, int *, int *, int *, void *, void *, int *, void *, int *, void *, void *, int *)) {f})"
        f'("{"N" if b_rows else "T"}", "{"N" if a_rows else "T"}", &n, &m, &k, &w, {{1}}, &lb, {{0}}, &la, &z, {{2}}, &n); }}}}'
    )
    return Call(_blas("gemm", a), code, (a, b, out))


def _add_product(calls: list[Call], a: Tensor, b: Tensor, out: Tensor) -> None:
    """Records out = a b; rows of a batch that were gathered just before are multiplied on their way."""
    last = calls[-1] if calls else None
    if isinstance(last, Rows):
        table, index, rows = last.tensors
        if (a.data_ptr(), a.shape, a.stride()) == (rows.data_ptr(), rows.shape, rows.stride()):
            joined = products.call_of_rows(table, index, rows, b, out, add=False)
            if joined is not None:
                calls[-1] = Call(*joined)
                return
    calls.append(_product(a, b, out, add=False))


def _layout(matrix: Tensor) -> tuple[bool, int]:
    """Whether a matrix is stored by rows, and the distance between them (or between columns)."""
    if matrix.dim() != 2:
        raise _CannotRecord
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return True, max(down if rows > 1 else 1, columns)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return False, max(across if columns > 1 else 1, rows)
    raise _CannotRecord


def _ctype(tensor: Tensor) -> str:
    return "double" if tensor.dtype == torch.float64 else "float"


def _blas(name: str, like: Tensor) -> int:
    """The address of torch's own BLAS function."""
    if like.dtype not in (torch.float32, torch.float64):
        raise _CannotRecord
    library = Path(torch.__file__).parent / "lib" / ("libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so")
    try:
        return _address(ctypes.CDLL(str(library)), f"{_ctype(like)[0].replace('f', 's')}{name}_")
    except OSError as error:
        raise _CannotRecord from error


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
        elif name not in _HARMLESS | _PRODUCTS | _OPERATORS:
            return []
    return list(dict.fromkeys(names))


def _loop(calls: Sequence[Call]) -> Callable[..., None] | None:
    """A C function (first, count, functions, addresses, strides) that makes the calls of each step."""
    body, at = [], 0
    for k, call in enumerate(calls):
        places = [f"(a[{j}] + i * s[{j}])" for j in range(at, at + len(call.tensors))]
        body.append(call.code.format(*places, f=f"f[{k}]"))
        at += len(call.tensors)
    source = (
        f'{_COPY}extern "C" void run(long first, long count, void **f, char **a, long *s) {{\n'
        "  for (long i = first; i < first + count; i++) {\n    " + "\n    ".join(body) + "\n  }\n}\n"
    )
    library = native.load(source, ("-O1",))
    if library is None:
        return None
    function: Any = library.run
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    run: Callable[..., None] = function
    return run
