"""A contestant's process seen from outside: started with its threads and caches set, spoken to by lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]


class NotRun(Exception):
    """A contestant could not do what it was asked; the message is the reason, without the machine's paths."""


def without_paths(text: str) -> str:
    """The text with absolute paths cut down to their last part."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}", lambda m: re.split(r"[/\\]", m.group())[-1], text)


def environment(threads: int, caches: Path | None) -> dict[str, str]:
    """Environment variables that hold every library to `threads` threads and send the compilers' caches to `caches`.

    XLA's CPU client takes its thread count from PJRT_NPROC; the flag keeps its matrix products on one thread as well. Processor
    seconds a wall second are measured, so that the results show whether a library kept to its threads.
    """
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PJRT_NPROC", "NPROC")
    variables = dict(os.environ) | dict.fromkeys(names, count) | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": ""}
    if threads == 1:
        variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    # A GPU's memory is taken as it is needed, so that the peak says something and contestants fit beside each other.
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if caches is not None:
        variables |= {
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "BAYESZOO_CACHE_DIR": str(caches / "bayeszoo"),
        }
    return variables


class Process:
    """One worker; a context manager that ends it.

    Args:
        request: what the worker builds first; see `worker`.
        patience: seconds that any one answer may take.
    """

    def __init__(
        self, request: Mapping[str, Any], *, threads: int, caches: Path | None = None, patience: float = 900.0
    ) -> None:
        self.patience = patience
        began = time.perf_counter()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=environment(threads, caches),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "BENCHMARK_DEBUG" not in os.environ else None,
            text=True,
        )
        try:
            self.ask(**request)
        except BaseException:
            self.close()
            raise
        #: Seconds from the process's start until libraries and data were there.
        self.import_seconds = time.perf_counter() - began

    def ask(self, **message: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            NotRun: with the worker's reason, or because it died or took too long.
        """
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # the pipe is broken, or closed already
            raise NotRun("the process ended") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            if not selector.select(self.patience):
                self.close()
                raise NotRun(f"took longer than {self.patience:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            raise NotRun(f"the process ended with code {self.child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotRun(without_paths(answer["error"]))
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
