"""A step's C++ kernels in one compilation.

Inductor compiles every kernel by itself, and each compilation reads torch's vector headers first: seconds, for milliseconds
of arithmetic. The kernels of a step are therefore written behind one another into one source and become one library, with
Inductor's own bindings for each. Where that fails, each is compiled by itself.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import inlined
from .patched import patched

#: Code of so many characters takes as long to compile as the headers that each source begins with: more is worth another processor.
ALONE = 500_000

_INCLUDE = re.compile(r"^\s*#include.*$", re.MULTILINE)


@dataclass(frozen=True)
class _Kernel:
    """A kernel that waits for the others: what Inductor wants compiled, and Inductor's own way to do it."""

    types: Sequence[str]
    source: str
    alone: Callable[[], Any]


@contextmanager
def kernels(processors: int) -> Iterator[None]:
    """Inside, Inductor compiles the kernels of one graph together.

    Args:
        processors: that compilers may use side by side.
    """
    from torch._inductor.async_compile import AsyncCompile

    alone, wait = AsyncCompile.cpp_pybinding, AsyncCompile.wait

    def note(self: Any, types: list[str], source: str) -> Any:
        return _Kernel(types, source, lambda: alone(self, types, inlined.with_source(source)))

    def resolve(self: Any, scope: dict[str, Any]) -> None:
        waiting = {name: value for name, value in scope.items() if isinstance(value, _Kernel)}
        scope.update(zip(waiting, _compiled(list(waiting.values()), processors), strict=True))
        wait(self, scope)

    with patched(AsyncCompile, "cpp_pybinding", note), patched(AsyncCompile, "wait", resolve):
        yield


def _compiled(waiting: Sequence[_Kernel], processors: int) -> list[Any]:
    """The kernels as functions, or as what Inductor waits for."""
    # A macro would reach the kernels behind it, and what they include.
    if len(waiting) > 1 and not any("#define" in kernel.source for kernel in waiting):
        try:
            groups = _groups([len(kernel.source) for kernel in waiting], processors)
            with ThreadPoolExecutor(len(groups)) as pool:
                # Inductor's settings hold in this thread alone: the others only wait for compilers.
                begun = [_begun([waiting[k] for k in group], pool.submit if len(groups) > 1 else None) for group in groups]
                functions = {
                    k: f for group, library in zip(groups, begun, strict=True) for k, f in zip(group, library(), strict=True)
                }
            return [functions[k] for k in range(len(waiting))]
        except Exception:
            pass  # two kernels that define the same name, say; what is wrong with one is told where it is compiled alone
    return [kernel.alone() for kernel in waiting]


def _groups(sizes: Sequence[int], processors: int) -> list[list[int]]:
    """Numbers of the kernels that are compiled together: the largest first, each to the group with least to do."""
    count = max(1, min(processors, len(sizes), round(sum(sizes) / ALONE)))
    groups: list[list[int]] = [[] for _ in range(count)]
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        min(groups, key=lambda group: sum(sizes[j] for j in group)).append(k)
    return groups


def _begun(group: Sequence[_Kernel], submit: Callable[..., Any] | None) -> Callable[[], list[Any]]:
    """Begins to compile kernels as one source.

    Returns:
        What waits for the compiler and gives the functions.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    names = [f"kernel_{k}" for k in range(len(group))]

    class Library(CppPythonBindingsCodeCache):  # type: ignore[misc]
        entry_function = names[0]

    load = Library.load_async(_source(group, names), "cpu", submit_fn=submit)

    def library() -> list[Any]:
        first = load()
        modules = [first, *(_binding(first, name) for name in names[1:])]
        return [getattr(module, name) for module, name in zip(modules, names, strict=True)]

    return library


def _binding(first: Any, name: str) -> Any:
    """The Python module of a further kernel in the library of the first."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    full = f"{first.key}.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, first.__file__)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[full] = module
        CppPythonBindingsCodeCache._loaded_module_names.add(full)  # forgotten with the first, when the cache is
    return sys.modules[full]


def _source(group: Sequence[_Kernel], names: Sequence[str]) -> str:
    """One C++ source: everything included, then each kernel and its binding under a name of its own."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Bindings

    included = dict.fromkeys(line.strip() for kernel in group for line in _INCLUDE.findall(kernel.source))
    parts = [
        "#define PY_SSIZE_T_CLEAN",
        "#include <Python.h>",
        "#include <cerrno>",
        "#include <cstdlib>",
        "#include <sstream>",
        *included,
    ]
    if any(inlined.used(kernel.source) for kernel in group):
        parts.append(inlined.SOURCE)
    for kernel, name in zip(group, names, strict=True):
        arguments = ", ".join(f"parse_arg<{type.replace('const ', '')}>(args, {n})" for n, type in enumerate(kernel.types))
        binding = Bindings.suffix_template.format(
            arg_len=len(kernel.types),
            call_entry_func=f"{name}({arguments}); Py_RETURN_NONE;",
            entry_func=name,
            extra_parse_arg="",
        )
        body = _INCLUDE.sub("", kernel.source)
        binding = _INCLUDE.sub("", binding).replace("#define PY_SSIZE_T_CLEAN", "")
        parts += [f"#define kernel {name}", body, "#undef kernel", f"namespace bindings_of_{name} {{", binding, "}"]
    return "\n".join(parts)
