"""Models of the lecture *Bayesian Deep Learning* in Pyro, with guides, one shared SVI runner, and ArviZ.

Importing bayeszoo sets Pyro's `module_local_params`: parameters live in modules, not in a global store.
"""

import pyro

# Set once, for good: as a context manager around single fits it would let later calls of a fitted guide read another fit's
# parameters.
pyro.settings.set(module_local_params=True)

from . import data, guides, inference, models  # noqa: E402
from .comparing import Comparison, compare  # noqa: E402
from .fitting import fit  # noqa: E402
from .inference.reference import reference  # noqa: E402
from .saving import load  # noqa: E402

__version__ = "0.1.0"

__all__ = ["Comparison", "__version__", "compare", "data", "fit", "guides", "inference", "load", "models", "plots", "reference"]


def __getattr__(name: str) -> object:
    """Loads `plots` when it is first used: matplotlib is slow to import."""
    if name == "plots":
        import importlib

        return importlib.import_module(".plots", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
