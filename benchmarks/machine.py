"""What the figures were measured on: processor, versions. No names or paths of the machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "jaxlib", "numpy")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's model."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", described.read_text(), re.M)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def compiler() -> str:
    """The C++ compiler that torch finds first, with its version."""
    for name in (os.environ.get("CXX", "g++"), "clang++", "c++"):
        line = _first_line(name, "--version")
        if line:
            return line
    return "none"


def version(package: str) -> str:
    """The installed version, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(device: str, threads: int) -> dict[str, str]:
    """Everything that a reader needs to place the figures."""
    gpu = _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if device == "cuda" else None
    return {
        "processor": f"{processor()}, {cores()} cores",
        "vectors": torch.backends.cpu.get_cpu_capability(),
        **({"GPU": gpu} if gpu else {}),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "compiler": compiler(),
    }
