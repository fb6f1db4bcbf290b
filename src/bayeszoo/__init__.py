"""Models of the lecture *Bayesian Deep Learning* in Pyro, with guides, one shared SVI runner, and ArviZ.

Importing bayeszoo sets Pyro's `module_local_params`: parameters live in modules, not in a global store.
"""

from typing import TYPE_CHECKING

from . import local_params

local_params.switch_on()

__version__ = "0.1.0"

__all__ = ["Comparison", "__version__", "compare", "data", "fit", "guides", "inference", "load", "models", "plots", "reference"]

#: The module behind each name that is not a module itself.
_HOME = {
    "Comparison": "comparing",
    "compare": "comparing",
    "fit": "fitting",
    "load": "saving",
    "reference": "inference.diagnosis.reference",
}

if TYPE_CHECKING:
    from . import data, guides, inference, models, plots
    from .comparing import Comparison, compare
    from .fitting import fit
    from .inference.diagnosis.reference import reference
    from .saving import load
else:

    def __getattr__(name: str) -> object:
        """Loads what is used when it is first used: torch, Pyro, ArviZ and matplotlib take seconds."""
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f".{_HOME.get(name, name)}", __name__)
        globals()[name] = found = getattr(module, name) if name in _HOME else module
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
