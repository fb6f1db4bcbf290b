"""`import bayeszoo` loads next to nothing, offers everything, and Pyro never runs without `module_local_params`."""

from __future__ import annotations

import subprocess
import sys

import pyro
import pytest

import bayeszoo as bz
from bayeszoo import local_params


def run(source: str) -> None:
    """Runs Python source in a process of its own."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bayeszoo_first_pyro_later() -> None:
    run("""
import importlib.util, sys
import bayeszoo as bz
slow = {"torch", "pyro", "pandas", "arviz", "matplotlib", "typer"}
assert not slow & set(sys.modules), slow & set(sys.modules)
assert set(bz.__all__) <= set(dir(bz))
finders = len(sys.meta_path)
assert importlib.util.find_spec("pyro") is not None  # looking is not importing
assert "pyro" not in sys.modules
assert len(sys.meta_path) == finders
import pyro.nn
assert pyro.settings.get("module_local_params") is True
assert len(sys.meta_path) == finders - 1
assert bz.data.load is bz.data.load
assert bz.fit.__name__ == "fit" and bz.load.__name__ == "load" and bz.compare.__name__ == "compare"
for name in bz.__all__:
    assert getattr(bz, name) is vars(bz)[name]
import importlib
importlib.reload(bz)
assert pyro.settings.get("module_local_params") is True
""")


def test_pyro_first_bayeszoo_later() -> None:
    finders = list(sys.meta_path)
    with pyro.settings.context(module_local_params=False):
        local_params.switch_on()
        assert pyro.settings.get("module_local_params") is True
    assert sys.meta_path == finders


def test_what_is_not_there_is_not_there() -> None:
    assert not hasattr(bz, "fitt")
    with pytest.raises(AttributeError, match="module 'bayeszoo' has no attribute 'fitt'"):
        bz.fitt  # noqa: B018
