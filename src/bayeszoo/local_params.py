"""Pyro's `module_local_params`, on from `import bayeszoo` or, if Pyro comes later, from the moment that it comes.

Importing Pyro takes seconds, and `bayeszoo --help` needs none of it. So a package that is imported before Pyro waits: it
stands in front of Python's finders until somebody imports `pyro`, lets the others find it, and sets the setting once Pyro's
own code has run. Nobody ever sees Pyro without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def switch_on() -> None:
    """Sets `module_local_params`, once and for good.

    As a context manager around single fits it would let later calls of a fitted guide read another fit's parameters.
    """
    if "pyro" in sys.modules:
        _set(sys.modules["pyro"])
    elif not any(isinstance(finder, _BeforePyro) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforePyro())


def _set(pyro: ModuleType) -> None:
    pyro.settings.set(module_local_params=True)


class _BeforePyro(MetaPathFinder):
    """Waits for `import pyro`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Pyro's spec from the other finders, with a loader that sets the setting at the end; None for all else."""
        if fullname != "pyro":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for f in others if (found := f.find_spec(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def load_and_set(module: ModuleType) -> None:
                load(module)
                _set(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            loader.exec_module = load_and_set
        return spec
