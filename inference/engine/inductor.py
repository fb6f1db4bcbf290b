"""A captured step as machine code, through torch's Inductor.

Inductor is called with the graph itself; `torch.compile` would put guards in front of it that cost more than a small step.
Compiled graphs are kept in this process by the graph's key, and on disk by Inductor's own cache (`TORCHINDUCTOR_CACHE_DIR`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import broadcasts, elementary, inlined, joined
from .capture import Graph, Uncapturable
from .passes import rewrite
from .patched import patched

#: Tensors with fewer elements than this are not worth a second thread.
SERIAL_BELOW = 65_536

#: Compiled graphs that a process keeps; the oldest go first (the disk keeps them all).
MOST_KEPT = 128

_compiled: dict[tuple[Any, ...], Compiled] = {}

#: Whether a thread hashes torch's sources, and which thread holds torch's lock for us.
_hashing = False
_holder: int | None = None


@dataclass(frozen=True)
class Compiled:
    """Machine code for a graph.

    Attributes:
        call: runs it on a list of tensors like the graph's inputs, which it updates in place.
        output: Inductor's own record of the generated code.
    """

    call: Callable[..., Any]
    output: Any


@contextmanager
def prepared(device: torch.device) -> Iterator[None]:
    """Loads Inductor, and has it hash torch's sources, as its cache wants, while the step is captured inside."""
    global _hashing
    if device.type != "cpu":
        yield
        return
    importlib.import_module("torch._inductor.compile_fx")
    from torch._inductor.codecache import torch_key

    _hashing = True
    getattr(torch_key, "prefetch", lambda: None)()
    try:
        yield
    finally:
        torch_key()
        _hashing = False


@contextmanager
def compiler_lock() -> Iterator[None]:
    """Holds what torch holds while it compiles: its compiler has one state for all threads."""
    global _holder
    from torch._dynamo.convert_frame import compile_lock

    with compile_lock:
        before, _holder = _holder, threading.get_ident()
        try:
            yield
        finally:
            _holder = before


def _fork() -> None:
    """The thread that hashes would not be in the forked process, which would wait for it for ever."""
    if _hashing:
        from torch._inductor.codecache import torch_key

        torch_key()


def _forked() -> None:
    """Nor would be the thread that compiles, to let the lock go."""
    global _holder
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    lock: Any = getattr(convert_frame, "compile_lock", None)
    if lock is not None and not lock._is_owned():  # another thread's, ours or of a compilation of the user's
        lock._at_fork_reinit()
        if _holder not in (None, threading.get_ident()):
            _holder = None
            torch.compiler._is_compiling_flag = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork, after_in_child=_forked)


def lacking_compiler(device: torch.device) -> str:
    """One sentence if this machine cannot compile, else nothing."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "the package triton, which compiles for CUDA, is not installed"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"] if sys.platform != "win32" else ["cl"]
    if not any(name and shutil.which(name) for name in names):
        return "there is no C++ compiler on this machine (install g++ or clang++)"
    return ""


def compile_graph(graph: Graph) -> Compiled:
    """Compiles a graph, or finds it compiled.

    Raises:
        Uncapturable: Inductor cannot; the message is its reason in one sentence.
    """
    largest = max((t.numel() for t in graph.inputs), default=0)
    threads = 1 if largest < SERIAL_BELOW else torch.get_num_threads()
    key = (graph.key, threads, torch.__version__)
    if key not in _compiled:
        if len(_compiled) >= MOST_KEPT:
            del _compiled[next(iter(_compiled))]
        try:
            _compiled[key] = _compile(graph, threads)
        except Exception as error:  # Inductor's failures have many types, and each means: stay eager
            text = (str(error).strip().splitlines() or [""])[0]
            raise Uncapturable(f"Inductor cannot compile the step: {type(error).__name__}: {text}") from error
    return _compiled[key]


@contextlib.contextmanager
def _quiet_logger() -> Iterator[None]:
    """torch's note on a missing CUDA says nothing here."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@_quiet_logger()
def _compile(graph: Graph, threads: int) -> Compiled:
    import torch._functorch.config as functorch_config
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    outputs: list[Any] = []
    on_cpu = all(t.device.type == "cpu" for t in graph.inputs)

    def inner(module: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if on_cpu:
            broadcasts.rewrite(module)
            elementary.rewrite(module)
        outputs.append(compile_fx_inner(module, *args, **kwargs))
        return outputs[-1]

    options: dict[str, Any] = {
        # Noise is an input; what is left of samplers keeps torch's own kernels and generator.
        "fallback_random": True,
        "fx_graph_cache": True,
        "cpp.threads": threads,
        "cpp.vec_isa_ok": True if sys.platform == "linux" else None,
        "cpp_cache_precompile_headers": False,
        # What a user has set for programs of another kind: kernels that reach the compiler by other ways than `joined` and `replay` know.
        "cpp_wrapper": False,
        "max_autotune": False,
        "max_autotune_gemm": False,
        "compile_threads": min(8, _processors()),
    }
    module = _without_outputs(graph)
    if on_cpu:
        options["pattern_matcher"] = False  # its patterns are networks' for GPUs, and take a second to set up (`_without_gpus`)
        rewrite(module)
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    tensors = [fake.from_tensor(t.detach(), static_shapes=True) for t in graph.inputs]
    # The outer cache would hand back a function without the record of its code.
    with (
        compiler_lock(),
        config.patch(options),
        functorch_config.patch(enable_autograd_cache=False),
        joined.kernels(_processors()),
        inlined.functions() if on_cpu else contextlib.nullcontext(),
        _unprobed_instructions(),
        _without_gpus() if on_cpu else contextlib.nullcontext(),
        tracing(TracingContext(fake)),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        call: Any = compile_fx(module, tensors, inner_compile=inner)
    return Compiled(call, outputs[0] if len(outputs) == 1 else None)


@contextmanager
def _unprobed_instructions() -> Iterator[None]:
    """Chooses among instruction sets by the processor's flags alone.

    Inductor compiles and loads test programs for each, which takes seconds, most of them for numbers of 8 and 16 bits.
    """
    from torch._inductor import cpu_vec_isa

    if sys.platform != "linux" or not cpu_vec_isa.x86_isa_checker():
        yield
        return

    class Avx512(cpu_vec_isa.VecAVX512):
        def __bool__(self) -> bool:  # type: ignore[override]
            return True

    known = {"avx512": Avx512, "avx2": cpu_vec_isa.VecAVX2}
    flags = cpu_vec_isa.x86_isa_checker()
    listed = [isa() for flag, isa in known.items() if flag in flags]
    with patched(cpu_vec_isa, "valid_vec_isa_list", lambda: listed):
        yield


@contextmanager
def _without_gpus() -> Iterator[None]:
    """Leaves out what Inductor does for GPUs alone on its way to the first graph of a process, a quarter of a warm start and more.

    It sets up its patterns even where they are not looked for, and hashes the sources of triton, which says nothing of a CPU's code.
    """
    from torch._inductor import codecache
    from torch._inductor.fx_passes import joint_graph

    with (
        patched(joint_graph, "lazy_init", lambda *_: None),
        patched(codecache.CacheBase, "get_system", _system),
    ):
        yield


@functools.cache
def _system() -> Any:
    """What Inductor tells machines apart by in its cache's keys, triton left out, and what its code for this package counts on."""
    from torch._inductor import codecache

    with patched(codecache, "triton_key", lambda: None):
        return {**inspect.unwrap(codecache.CacheBase.get_system)(), "bayeszoo": inlined.VERSION}


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _without_outputs(graph: Graph) -> torch.fx.GraphModule:
    """Everything that a step leaves behind it writes in place; what it returns is for checks."""
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    env: dict[Any, Any] = {}
    for node in graph.module.graph.nodes:
        if node.op == "output":
            module.graph.output(())
        else:
            env[node] = module.graph.node_copy(node, lambda n: env[n])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
